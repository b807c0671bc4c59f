package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.serializers.JacksonMapper;
import io.kestra.core.services.KVStoreService;
import io.kestra.core.storages.kv.KVMetadata;
import io.kestra.core.storages.kv.KVStore;
import io.kestra.core.storages.kv.KVValueAndMetadata;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDate;
import java.util.LinkedHashMap;
import java.util.NoSuchElementException;

/** The key-value store of a namespace. */
final class KeyValues {
    private final KVStoreService service;

    KeyValues(ApplicationContext context) {
        this.service = context.getBean(KVStoreService.class);
    }

    void addTo(Router router) {
        router
            .add("GET", "/namespaces/{namespace}/kv", request -> Reply.ok(store(request).list()))
            .add("GET", "/namespaces/{namespace}/kv/{key}", this::get)
            .add("PUT", "/namespaces/{namespace}/kv/{key}", this::put)
            .add("DELETE", "/namespaces/{namespace}/kv/{key}", this::delete);
    }

    private Reply get(Request request) throws Exception {
        var key = request.variable("key");
        var value = store(request).getValue(key)
            .orElseThrow(() -> new NoSuchElementException("No value found for key '" + key + "' in namespace '"
                + request.variable("namespace") + "'"));
        var body = new LinkedHashMap<String, Object>();
        body.put("type", type(value.value()));
        body.put("value", value.value());
        return Reply.ok(body);
    }

    private Reply put(Request request) throws IOException {
        var ttl = request.header("ttl").map(Duration::parse).orElse(null);
        var metadata = new KVMetadata(request.header("description").orElse(null), ttl);
        store(request).put(request.variable("key"), new KVValueAndMetadata(metadata, value(request.text())));
        return Reply.empty(200);
    }

    private Reply delete(Request request) throws IOException {
        return Reply.ok(store(request).delete(request.variable("key")));
    }

    /** What reads as JSON is kept as such, the rest as text. */
    private static Object value(String text) {
        try {
            return JacksonMapper.toObject(text);
        } catch (IOException e) {
            return text;
        }
    }

    private static String type(Object value) {
        return switch (value) {
            case null -> "STRING";
            case String text -> "STRING";
            case Number number -> "NUMBER";
            case Boolean flag -> "BOOLEAN";
            case Instant instant -> "DATETIME";
            case LocalDate date -> "DATE";
            case Duration duration -> "DURATION";
            default -> "JSON";
        };
    }

    private KVStore store(Request request) {
        var namespace = request.variable("namespace");
        return service.get(TENANT, namespace, namespace);
    }
}

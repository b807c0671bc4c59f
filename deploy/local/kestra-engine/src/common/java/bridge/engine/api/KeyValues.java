package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.serializers.JacksonMapper;
import io.kestra.core.services.KVStoreService;
import io.kestra.core.storages.kv.KVMetadata;
import io.kestra.core.storages.kv.KVStore;
import io.kestra.core.storages.kv.KVValueAndMetadata;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Body;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Delete;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.Header;
import io.micronaut.http.annotation.Put;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDate;
import java.util.NoSuchElementException;

/** The key-value store of a namespace. */
@Controller(Api.ROOT + "/namespaces/{namespace}/kv")
record KeyValues(KVStoreService service) {
    record TypedValue(String type, Object value) {
    }

    @Get
    Object list(String namespace) throws IOException {
        return store(namespace).list();
    }

    @Get("/{key}")
    TypedValue get(String namespace, String key) throws Exception {
        var value = store(namespace).getValue(key).orElseThrow(() -> new NoSuchElementException(
            "No value found for key '" + key + "' in namespace '" + namespace + "'"));
        return new TypedValue(type(value.value()), value.value());
    }

    @Put(uri = "/{key}", consumes = {MediaType.APPLICATION_JSON, MediaType.TEXT_PLAIN})
    void put(
        String namespace, String key, @Nullable @Header Duration ttl, @Nullable @Header String description, @Body String value
    ) throws IOException {
        store(namespace).put(key, new KVValueAndMetadata(new KVMetadata(description, ttl), parse(value)));
    }

    @Delete("/{key}")
    boolean delete(String namespace, String key) throws IOException {
        return store(namespace).delete(key);
    }

    /** What reads as JSON is kept as such, the rest as text. */
    private static Object parse(String text) {
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

    private KVStore store(String namespace) {
        return service.get(TENANT, namespace, namespace);
    }
}

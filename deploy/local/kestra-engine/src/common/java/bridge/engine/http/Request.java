package bridge.engine.http;

import com.sun.net.httpserver.HttpExchange;
import java.io.IOException;
import java.net.URI;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;

/** A request whose route is known: path variables, query values and body, decoded. */
public final class Request {
    private final HttpExchange exchange;
    private final Map<String, String> variables;
    private final Map<String, List<String>> query;

    Request(HttpExchange exchange, Map<String, String> variables) {
        this.exchange = exchange;
        this.variables = variables;
        this.query = parseQuery(exchange.getRequestURI().getRawQuery());
    }

    public String method() {
        return exchange.getRequestMethod();
    }

    public URI uri() {
        return exchange.getRequestURI();
    }

    /** A part of the path that the route names. */
    public String variable(String name) {
        return variables.get(name);
    }

    /** Every query value by its name, in the order in which they came. */
    public Map<String, List<String>> query() {
        return query;
    }

    public List<String> queryAll(String name) {
        return query.getOrDefault(name, List.of());
    }

    public Optional<String> query(String name) {
        return queryAll(name).stream().findFirst();
    }

    /** A query value that the route can't do without. */
    public String required(String name) {
        return query(name).orElseThrow(
            () -> new HttpError(400, "Required QueryValue [" + name + "] not specified"));
    }

    public boolean flag(String name) {
        return query(name).map(Boolean::parseBoolean).orElse(false);
    }

    public Optional<Integer> number(String name) {
        try {
            return query(name).filter(value -> !value.isBlank()).map(Integer::valueOf);
        } catch (NumberFormatException e) {
            throw new HttpError(400, "Failed to convert argument [" + name + "] for value [" + query(name).orElse("") + "]");
        }
    }

    public Optional<String> header(String name) {
        return Optional.ofNullable(exchange.getRequestHeaders().getFirst(name));
    }

    /** All headers; the JDK's server lowers what follows a dash, so every word gets its capital back. */
    public Map<String, List<String>> headers() {
        return exchange.getRequestHeaders().entrySet().stream()
            .collect(Collectors.toMap(header -> capitalise(header.getKey()), Map.Entry::getValue));
    }

    private static String capitalise(String name) {
        return Arrays.stream(name.split("-"))
            .map(word -> word.isEmpty() ? word : word.substring(0, 1).toUpperCase() + word.substring(1))
            .collect(Collectors.joining("-"));
    }

    public byte[] body() throws IOException {
        return exchange.getRequestBody().readAllBytes();
    }

    public String text() throws IOException {
        return new String(body(), StandardCharsets.UTF_8);
    }

    private static Map<String, List<String>> parseQuery(String raw) {
        var values = new LinkedHashMap<String, List<String>>();
        if (raw == null || raw.isEmpty()) {
            return values;
        }
        for (var pair : raw.split("&")) {
            var at = pair.indexOf('=');
            var name = decode(at < 0 ? pair : pair.substring(0, at));
            values.computeIfAbsent(name, key -> new ArrayList<>()).add(at < 0 ? "" : decode(pair.substring(at + 1)));
        }
        return values;
    }

    private static String decode(String text) {
        try {
            return URLDecoder.decode(text, StandardCharsets.UTF_8);
        } catch (IllegalArgumentException e) {
            throw new HttpError(400, "Malformed query: " + text);
        }
    }
}

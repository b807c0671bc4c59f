package bridge.engine.http;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** What is sent back: a status, headers, and a body of known length or one that is written bit by bit. */
public record Reply(int status, Map<String, String> headers, byte[] body, Stream stream) {
    /** Writes a body whose length isn't known beforehand. */
    @FunctionalInterface
    public interface Stream {
        void writeTo(OutputStream output) throws IOException;
    }

    /** A value as Kestra's own mapper writes it. */
    public static Reply json(int status, Object value) {
        try {
            return of(status, "application/json", Json.mapper().writeValueAsBytes(value));
        } catch (JsonProcessingException e) {
            throw new IllegalStateException("Unable to write a value as JSON", e);
        }
    }

    /** The value with status 200. */
    public static Reply ok(Object value) {
        return json(200, value);
    }

    /** No body at all. */
    public static Reply empty(int status) {
        return new Reply(status, Map.of(), new byte[0], null);
    }

    public static Reply text(String value) {
        return of(200, "text/plain", value.getBytes(StandardCharsets.UTF_8));
    }

    public static Reply of(int status, String type, byte[] body) {
        return new Reply(status, Map.of("Content-Type", type), body, null);
    }

    public static Reply stream(String type, Map<String, String> headers, Stream stream) {
        var all = new java.util.HashMap<>(headers);
        all.put("Content-Type", type);
        return new Reply(200, all, null, stream);
    }
}

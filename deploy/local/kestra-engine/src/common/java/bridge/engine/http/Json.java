package bridge.engine.http;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import io.kestra.core.serializers.JacksonMapper;

/** Kestra's own mapper, with the one setting that its web server adds: durations are text, as in {@code PT0.25S}. */
public final class Json {
    private static final ObjectMapper MAPPER =
        JacksonMapper.ofJson(false).copy().disable(SerializationFeature.WRITE_DURATIONS_AS_TIMESTAMPS);

    private Json() {
    }

    public static ObjectMapper mapper() {
        return MAPPER;
    }
}

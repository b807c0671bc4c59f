package io.kestra.plugin.amqp;

import com.fasterxml.jackson.core.JsonProcessingException;
import io.kestra.core.serializers.JacksonMapper;
import java.nio.charset.StandardCharsets;

/** How a message's data becomes its body. */
public enum SerdeType {
    STRING,
    JSON;

    byte[] serialize(Object data) throws JsonProcessingException {
        return switch (this) {
            case STRING -> data.toString().getBytes(StandardCharsets.UTF_8);
            case JSON -> JacksonMapper.ofJson(false).writeValueAsBytes(data);
        };
    }
}

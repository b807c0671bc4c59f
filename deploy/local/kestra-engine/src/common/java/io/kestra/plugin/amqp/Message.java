package io.kestra.plugin.amqp;

import com.rabbitmq.client.AMQP.BasicProperties;
import java.time.Duration;
import java.time.Instant;
import java.util.Date;
import java.util.Map;
import java.util.stream.Collectors;

/** One message of a {@link Publish} task's {@code from}. */
record Message(
    String contentType, String contentEncoding, Map<String, Object> headers, Integer deliveryMode, Integer priority,
    String messageId, String correlationId, String replyTo, Duration expiration, Instant timestamp, String type, String userId,
    String appId, Object data
) {
    /** The properties as the real plugin sends them: it writes a header's name into its value, as in {@code x-run=42}. */
    BasicProperties properties() {
        return new BasicProperties.Builder()
            .contentType(contentType)
            .contentEncoding(contentEncoding)
            .headers(namedHeaders())
            .deliveryMode(deliveryMode)
            .priority(priority)
            .correlationId(correlationId)
            .replyTo(replyTo)
            .expiration(expiration == null ? null : String.valueOf(expiration.toMillis()))
            .messageId(messageId)
            .timestamp(timestamp == null ? null : Date.from(timestamp))
            .type(type)
            .userId(userId)
            .appId(appId)
            .build();
    }

    private Map<String, Object> namedHeaders() {
        return headers == null ? null : headers.entrySet().stream().collect(Collectors.toMap(Map.Entry::getKey, String::valueOf));
    }
}

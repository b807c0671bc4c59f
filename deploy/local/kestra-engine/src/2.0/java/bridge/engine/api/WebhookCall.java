package bridge.engine.api;

import com.fasterxml.jackson.core.JsonProcessingException;
import io.kestra.core.http.HttpRequest;
import io.kestra.core.serializers.JacksonMapper;
import io.kestra.core.utils.IdUtils;
import io.kestra.plugin.core.trigger.WebhookContext;
import io.micronaut.core.annotation.Nullable;
import java.io.IOException;

/** A call as the webhook trigger of Kestra 2.0 takes it: parsed, with the id of the execution to come. */
final class WebhookCall {
    private WebhookCall() {
    }

    static WebhookContext.WebhookContextBuilder of(io.micronaut.http.HttpRequest<?> request, @Nullable String text)
        throws IOException {
        return WebhookContext.builder()
            .request(HttpRequest.of(request.getUri(), request.getMethodName(), body(text), request.getHeaders().asMap()))
            .executionId(IdUtils.create());
    }

    private static HttpRequest.RequestBody body(@Nullable String text) throws IOException {
        if (text == null) {
            return null;
        }
        try {
            return HttpRequest.JsonRequestBody.of(JacksonMapper.toObject(text));
        } catch (JsonProcessingException e) {
            return HttpRequest.StringRequestBody.of(text);
        }
    }
}

package bridge.engine.api;

import bridge.engine.http.Request;
import com.fasterxml.jackson.core.JsonProcessingException;
import io.kestra.core.http.HttpRequest;
import io.kestra.core.serializers.JacksonMapper;
import io.kestra.core.utils.IdUtils;
import io.kestra.plugin.core.trigger.WebhookContext;
import java.io.IOException;

/** A call as the webhook trigger of Kestra 2.0 takes it: parsed, with the id of the execution to come. */
final class WebhookCall {
    private WebhookCall() {
    }

    static WebhookContext.WebhookContextBuilder of(Request request) throws IOException {
        return WebhookContext.builder()
            .request(HttpRequest.of(request.uri(), request.method(), body(request.text()), request.headers()))
            .executionId(IdUtils.create());
    }

    private static HttpRequest.RequestBody body(String text) throws IOException {
        if (text.isEmpty()) {
            return null;
        }
        try {
            return HttpRequest.JsonRequestBody.of(JacksonMapper.toObject(text));
        } catch (JsonProcessingException e) {
            return HttpRequest.StringRequestBody.of(text);
        }
    }
}

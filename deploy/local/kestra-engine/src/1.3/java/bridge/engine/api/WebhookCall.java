package bridge.engine.api;

import io.kestra.core.http.HttpRequest;
import io.kestra.plugin.core.trigger.WebhookContext;
import io.micronaut.core.annotation.Nullable;

/** A call as the webhook trigger of Kestra 1.3 takes it: its body is text, which the trigger parses. */
final class WebhookCall {
    private WebhookCall() {
    }

    static WebhookContext.WebhookContextBuilder of(io.micronaut.http.HttpRequest<?> request, @Nullable String text) {
        var body = text == null ? null : HttpRequest.StringRequestBody.of(text);
        return WebhookContext.builder().request(HttpRequest.of(request.getUri(), request.getMethodName(), body, request.getHeaders().asMap()));
    }
}

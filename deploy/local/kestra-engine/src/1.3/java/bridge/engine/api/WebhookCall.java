package bridge.engine.api;

import bridge.engine.http.Request;
import io.kestra.core.http.HttpRequest;
import io.kestra.plugin.core.trigger.WebhookContext;
import java.io.IOException;

/** A call as the webhook trigger of Kestra 1.3 takes it: its body is text, which the trigger parses. */
final class WebhookCall {
    private WebhookCall() {
    }

    static WebhookContext.WebhookContextBuilder of(Request request) throws IOException {
        var text = request.text();
        var body = text.isEmpty() ? null : HttpRequest.StringRequestBody.of(text);
        return WebhookContext.builder().request(HttpRequest.of(request.uri(), request.method(), body, request.headers()));
    }
}

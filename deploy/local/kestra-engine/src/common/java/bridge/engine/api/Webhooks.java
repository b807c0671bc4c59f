package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.http.HttpResponse;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.services.FlowService;
import io.kestra.core.services.WebhookService;
import io.kestra.plugin.core.trigger.AbstractWebhookTrigger;
import io.micronaut.context.ApplicationContext;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/** Executions that anyone starts who knows the key of a flow's webhook trigger. */
final class Webhooks {
    private final FlowService flows;
    private final WebhookService service;

    Webhooks(ApplicationContext context) {
        this.flows = context.getBean(FlowService.class);
        this.service = context.getBean(WebhookService.class);
    }

    void addTo(Router router) {
        for (var method : List.of("GET", "POST", "PUT")) {
            router.add(method, "/executions/webhook/{namespace}/{flow}/{key}", this::trigger);
        }
    }

    private Reply trigger(Request request) throws Exception {
        var flow = flows.getFlowIfExecutableOrThrow(
            TENANT, request.variable("namespace"), request.variable("flow"), Optional.empty());
        var webhook = WebhookCall.of(request)
            .flow(flow)
            .trigger(trigger(flow, request.variable("key")))
            .webhookService(service)
            .build();
        return reply(webhook.trigger().evaluate(webhook).block());
    }

    private AbstractWebhookTrigger trigger(Flow flow, String key) {
        var triggers = flow.getTriggers() == null ? List.<Object>of() : flow.getTriggers();
        return triggers.stream()
            .filter(AbstractWebhookTrigger.class::isInstance)
            .map(AbstractWebhookTrigger.class::cast)
            .filter(trigger -> key.equals(key(flow, trigger)))
            .findFirst()
            .orElseThrow(() -> new NoSuchElementException("Webhook not found"));
    }

    /** The key may be an expression, say a secret. */
    private String key(Flow flow, AbstractWebhookTrigger trigger) {
        try {
            return service.runContext(flow, trigger).render(trigger.getKey());
        } catch (Exception e) {
            throw new IllegalArgumentException("Unable to render the webhook's key", e);
        }
    }

    private static Reply reply(HttpResponse<?> response) {
        var status = response.getStatus().getCode();
        return switch (response.getBody()) {
            case null -> status == 404 ? notFound() : Reply.empty(status);
            case String text -> Reply.of(status, "text/plain", text.getBytes(StandardCharsets.UTF_8));
            case Object body -> Reply.json(status, body);
        };
    }

    private static Reply notFound() {
        throw new NoSuchElementException();
    }
}

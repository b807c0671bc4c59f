package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.flows.Flow;
import io.kestra.core.services.FlowService;
import io.kestra.core.services.WebhookService;
import io.kestra.plugin.core.trigger.AbstractWebhookTrigger;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpRequest;
import io.micronaut.http.HttpResponse;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Body;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.Post;
import io.micronaut.http.annotation.Put;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/** Executions that anyone starts who knows the key of a flow's webhook trigger. */
@Controller(Api.EXECUTIONS + "/webhook/{namespace}/{flowId}/{key}")
record Webhooks(FlowService flows, WebhookService service) {
    @Get
    HttpResponse<?> get(HttpRequest<?> request, String namespace, String flowId, String key) throws Exception {
        return trigger(request, namespace, flowId, key, null);
    }

    @Post(consumes = MediaType.ALL)
    HttpResponse<?> post(HttpRequest<?> request, String namespace, String flowId, String key, @Nullable @Body String body)
        throws Exception {
        return trigger(request, namespace, flowId, key, body);
    }

    @Put(consumes = MediaType.ALL)
    HttpResponse<?> put(HttpRequest<?> request, String namespace, String flowId, String key, @Nullable @Body String body)
        throws Exception {
        return trigger(request, namespace, flowId, key, body);
    }

    private HttpResponse<?> trigger(HttpRequest<?> request, String namespace, String flowId, String key, @Nullable String body)
        throws Exception {
        var flow = flows.getFlowIfExecutableOrThrow(TENANT, namespace, flowId, Optional.empty());
        var webhook = WebhookCall.of(request, body)
            .flow(flow)
            .trigger(find(flow, key))
            .webhookService(service)
            .build();
        var response = webhook.trigger().evaluate(webhook).block();
        return HttpResponse.status(response.getStatus().getCode(), response.getStatus().getReason()).body(response.getBody());
    }

    private AbstractWebhookTrigger find(Flow flow, String key) {
        var triggers = flow.getTriggers() == null ? List.<Object>of() : flow.getTriggers();
        return triggers.stream()
            .filter(AbstractWebhookTrigger.class::isInstance)
            .map(AbstractWebhookTrigger.class::cast)
            .filter(trigger -> key.equals(rendered(flow, trigger)))
            .findFirst()
            .orElseThrow(() -> new NoSuchElementException("Webhook not found"));
    }

    /** A trigger's key, which may be an expression, say a secret. */
    private String rendered(Flow flow, AbstractWebhookTrigger trigger) {
        try {
            return service.runContext(flow, trigger).render(trigger.getKey());
        } catch (Exception e) {
            throw new IllegalArgumentException("Unable to render the webhook's key", e);
        }
    }
}

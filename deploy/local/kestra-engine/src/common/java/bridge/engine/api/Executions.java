package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Multipart;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.debug.Breakpoint;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.ExecutionKind;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.services.ExecutionService;
import io.kestra.core.services.FlowService;
import io.micronaut.context.ApplicationContext;
import io.micronaut.http.sse.Event;
import java.io.IOException;
import java.time.Duration;
import java.time.ZonedDateTime;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;

/** Executions: create, look up and delete. */
final class Executions {
    private static final Duration LONGEST_WAIT = Duration.ofHours(1);

    private final FlowService flows;
    private final ExecutionRepositoryInterface repository;
    private final ExecutionService service;
    private final Following following;
    private final Creation creation;

    Executions(ApplicationContext context) {
        this.flows = context.getBean(FlowService.class);
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.service = context.getBean(ExecutionService.class);
        this.following = new Following(context);
        this.creation = new Creation(context);
    }

    void addTo(Router router) {
        router
            .add("GET", "/executions/{id}", this::get)
            .add("DELETE", "/executions/{id}", this::delete)
            .add("POST", "/executions/{namespace}/{flow}", this::create);
    }

    private Reply get(Request request) {
        return Reply.ok(ExecutionJson.whole(find(repository, request.variable("id"))));
    }

    /** Out of the database, with its logs, metrics and files unless the request keeps them; nothing stops what runs. */
    private Reply delete(Request request) throws IOException {
        var execution = find(repository, request.variable("id"));
        service.delete(
            execution, unlessKept(request, "deleteLogs"), unlessKept(request, "deleteMetrics"), unlessKept(request, "deleteStorage"));
        return Reply.empty(204);
    }

    private static boolean unlessKept(Request request, String name) {
        return request.query(name).map(Boolean::parseBoolean).orElse(true);
    }

    static Execution find(ExecutionRepositoryInterface repository, String id) {
        return repository.findById(TENANT, id)
            .orElseThrow(() -> new NoSuchElementException("Unable to find execution id '" + id + "'"));
    }

    private Reply create(Request request) throws Exception {
        var parts = Multipart.of(request);
        var flow = flows.getFlowIfExecutableOrThrow(
            TENANT, request.variable("namespace"), request.variable("flow"), request.number("revision"));
        var execution = creation.create(new Order(
            flow,
            Labels.parse(request.queryAll("labels")),
            request.query("kind").map(Executions::kind).orElse(null),
            request.query("scheduleDate").map(ZonedDateTime::parse).orElse(null),
            request.query("breakpoints").map(Executions::breakpoints).orElse(null),
            parts));
        return Reply.ok(ExecutionJson.created(request.flag("wait") ? await(execution, flow) : execution));
    }

    private Execution await(Execution execution, Flow flow) {
        return following.events(execution, flow).last().map(Event::getData).block(LONGEST_WAIT);
    }

    /** An execution's address in the user interface. */
    static String url(Execution execution) {
        return String.join("/", "/ui", execution.getTenantId(), "executions", execution.getNamespace(), execution.getFlowId(),
            execution.getId());
    }

    private static ExecutionKind kind(String name) {
        try {
            return ExecutionKind.valueOf(name);
        } catch (IllegalArgumentException e) {
            throw new HttpError(400, "Failed to convert argument [kind] for value [" + name + "]");
        }
    }

    private static List<Breakpoint> breakpoints(String text) {
        return Arrays.stream(text.split(",")).map(Breakpoint::of).toList();
    }
}

package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Multipart;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.debug.Breakpoint;
import io.kestra.core.executor.command.Create;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.ExecutionKind;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.FlowId;
import io.kestra.core.models.flows.State;
import io.kestra.core.models.flows.check.Check;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.runners.FlowInputOutput;
import io.kestra.core.services.FlowService;
import io.micronaut.context.ApplicationContext;
import io.micronaut.http.multipart.CompletedPart;
import io.micronaut.http.sse.Event;
import java.time.Duration;
import java.time.ZonedDateTime;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import reactor.core.publisher.Flux;

/** Executions: create and look up. */
final class Executions {
    private static final Duration LONGEST_WAIT = Duration.ofHours(1);

    private final FlowService flows;
    private final FlowInputOutput inputs;
    private final ExecutionRepositoryInterface repository;
    private final Following following;
    private final Commands commands;

    Executions(ApplicationContext context) {
        this.flows = context.getBean(FlowService.class);
        this.inputs = context.getBean(FlowInputOutput.class);
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.following = new Following(context);
        this.commands = new Commands(context);
    }

    void addTo(Router router) {
        router
            .add("GET", "/executions/{id}", this::get)
            .add("POST", "/executions/{namespace}/{flow}", this::create);
    }

    private Reply get(Request request) {
        return Reply.ok(ExecutionJson.whole(find(repository, request.variable("id"))));
    }

    static Execution find(ExecutionRepositoryInterface repository, String id) {
        return repository.findById(TENANT, id)
            .orElseThrow(() -> new NoSuchElementException("Unable to find execution id '" + id + "'"));
    }

    private Reply create(Request request) throws Exception {
        var parts = Multipart.of(request);
        var flow = flows.getFlowIfExecutableOrThrow(
            TENANT, request.variable("namespace"), request.variable("flow"), request.number("revision"));
        var command = checked(flow, command(request, flow, parts));
        commands.send(command.executionId(), command::withOperationId);
        var execution = repository.findById(TENANT, command.executionId()).orElseThrow(
            () -> new NoSuchElementException("Execution disappeared after create: " + command.executionId()));
        return Reply.ok(ExecutionJson.created(request.flag("wait") ? await(execution, flow) : execution));
    }

    private Create command(Request request, Flow flow, List<CompletedPart> parts) {
        var labels = Labels.parse(request.queryAll("labels"));
        return Create.of(FlowId.of(TENANT, flow.getNamespace(), flow.getId(), flow.getRevision()))
            .withLabels(labels)
            .withKind(request.query("kind").map(Executions::kind).orElse(null))
            .withScheduleDate(request.query("scheduleDate").map(date -> ZonedDateTime.parse(date).toInstant()).orElse(null))
            .withBreakpoints(request.query("breakpoints").map(Executions::breakpoints).orElse(null))
            .withInputsFromReader(executionId -> read(flow, executionId, labels, parts));
    }

    private Map<String, Object> read(Flow flow, String executionId, List<Label> labels, List<CompletedPart> parts) {
        return inputs.readExecutionInputs(flow, executionId, labels, Flux.fromIterable(parts)).block();
    }

    /** The flow's checks may refuse the execution, or let it be created as failed. */
    private Create checked(Flow flow, Create command) {
        var failed = flows.getFailedChecks(flow, command.inputs());
        if (failed.isEmpty()) {
            return command;
        }
        return switch (Check.resolveBehavior(failed)) {
            case BLOCK_EXECUTION -> throw new IllegalArgumentException(
                "Flow execution blocked: " + String.join(", ", failed.stream().map(Check::getMessage).toList()));
            case FAIL_EXECUTION -> command.withStateType(State.Type.FAILED);
            case CREATE_EXECUTION -> command;
        };
    }

    private Execution await(Execution execution, Flow flow) {
        return following.events(execution, flow).last().map(Event::getData).block(LONGEST_WAIT);
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

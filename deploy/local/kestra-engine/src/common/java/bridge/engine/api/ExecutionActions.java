package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Json;
import bridge.engine.http.Multipart;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import com.fasterxml.jackson.core.type.TypeReference;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.micronaut.context.ApplicationContext;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;

/** What can be done to one execution, and when; how it is done is told by {@link Changes}. */
final class ExecutionActions {
    private static final TypeReference<List<Label>> LABELS = new TypeReference<>() {
    };

    private final ExecutionRepositoryInterface repository;
    private final FlowRepositoryInterface flows;
    private final Changes changes;

    ExecutionActions(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.flows = context.getBean(FlowRepositoryInterface.class);
        this.changes = new Changes(context);
    }

    void addTo(Router router) {
        router
            .add("DELETE", Changes.PATH + "kill", this::kill)
            .add("POST", Changes.PATH + "restart", this::restart)
            .add("POST", Changes.PATH + "replay", this::replay)
            .add("POST", Changes.PATH + "resume", this::resume)
            .add("POST", Changes.PATH + "pause", this::pause)
            .add("POST", Changes.PATH + "force-run", this::forceRun)
            .add("POST", Changes.PATH + "unqueue", this::unqueue)
            .add("POST", Changes.PATH + "labels", this::labels)
            .add("POST", Changes.PATH + "change-status", this::changeStatus);
    }

    private Reply kill(Request request) throws Exception {
        var execution = find(request);
        var cascade = request.query("isOnKillCascade").map(Boolean::parseBoolean).orElse(true);
        if (execution.getState().isTerminated() && !cascade) {
            throw new IllegalStateException("Execution is already finished, can't kill it");
        }
        return changes.kill(execution, cascade);
    }

    private Reply restart(Request request) throws Exception {
        var execution = find(request);
        return changes.restart(execution, revision(request, execution));
    }

    private Reply replay(Request request) throws Exception {
        var execution = find(request);
        return changes.replay(execution, request.query("taskRunId").orElse(null), revision(request, execution),
            request.query("breakpoints").orElse(null));
    }

    private Reply resume(Request request) throws Exception {
        var parts = Multipart.of(request);
        var execution = find(request);
        if (!execution.getState().isPaused()) {
            throw new IllegalStateException("Execution is not paused, can't resume it");
        }
        return changes.resume(execution, flows.findByExecution(execution), parts);
    }

    private Reply pause(Request request) throws Exception {
        var execution = find(request);
        if (!execution.getState().isRunning()) {
            throw new IllegalStateException("Execution is not running, can't pause it");
        }
        return changes.pause(execution);
    }

    private Reply forceRun(Request request) throws Exception {
        var execution = find(request);
        if (execution.getState().isTerminated()) {
            throw new IllegalArgumentException("Only non terminated executions can be forced run.");
        }
        return changes.forceRun(execution);
    }

    private Reply unqueue(Request request) throws Exception {
        var execution = find(request);
        if (!execution.getState().isQueued()) {
            throw new IllegalArgumentException("Only QUEUED executions can be unqueued");
        }
        return changes.unqueue(execution, request.query("state").map(ExecutionActions::state).orElse(State.Type.RUNNING));
    }

    private Reply labels(Request request) throws Exception {
        var labels = Json.mapper().readValue(request.body(), LABELS);
        return changes.label(find(request), labels);
    }

    private Reply changeStatus(Request request) throws Exception {
        var status = state(request.required("status"));
        if (!status.isTerminated()) {
            throw new IllegalArgumentException("You can only change the state of an execution to a terminal state.");
        }
        var execution = find(request);
        if (!execution.getState().isTerminated()) {
            throw new IllegalArgumentException("You can only change the state of a terminated execution.");
        }
        return changes.changeStatus(execution, status);
    }

    private Execution find(Request request) {
        return Executions.find(repository, request.variable("id"));
    }

    /** The flow's revision to go on with, which must exist. */
    private Integer revision(Request request, Execution execution) {
        var revision = request.number("revision");
        if (revision.isPresent() && flows.findById(TENANT, execution.getNamespace(), execution.getFlowId(), revision).isEmpty()) {
            throw new NoSuchElementException("Unable to find revision " + revision.get() + " on flow "
                + execution.getNamespace() + "." + execution.getFlowId());
        }
        return revision.orElse(null);
    }

    private static State.Type state(String name) {
        return Optional.of(name).map(text -> {
            try {
                return State.Type.valueOf(text);
            } catch (IllegalArgumentException e) {
                throw new HttpError(400, "Failed to convert argument [status] for value [" + text + "]");
            }
        }).get();
    }
}

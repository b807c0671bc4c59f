package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.HttpError;
import bridge.engine.http.Json;
import bridge.engine.http.Multipart;
import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import com.fasterxml.jackson.core.type.TypeReference;
import io.kestra.core.executor.command.ExecutionCommand;
import io.kestra.core.executor.command.ForceRun;
import io.kestra.core.executor.command.Pause;
import io.kestra.core.executor.command.Replay;
import io.kestra.core.executor.command.Restart;
import io.kestra.core.executor.command.Resume;
import io.kestra.core.executor.command.Unqueue;
import io.kestra.core.executor.command.UpdateLabels;
import io.kestra.core.executor.command.UpdateStatus;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.ExecutionService;
import io.kestra.core.utils.IdUtils;
import io.micronaut.context.ApplicationContext;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.function.Function;
import reactor.core.publisher.Flux;

/** What can be done to one execution; each answers with the execution once the executor has carried it out. */
final class ExecutionActions {
    private static final TypeReference<List<Label>> LABELS = new TypeReference<>() {
    };

    private final ExecutionRepositoryInterface repository;
    private final FlowRepositoryInterface flows;
    private final ExecutionService service;
    private final Commands commands;

    ExecutionActions(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.flows = context.getBean(FlowRepositoryInterface.class);
        this.service = context.getBean(ExecutionService.class);
        this.commands = new Commands(context);
    }

    void addTo(Router router) {
        router
            .add("DELETE", "/executions/{id}/actions/kill", this::kill)
            .add("POST", "/executions/{id}/actions/restart", this::restart)
            .add("POST", "/executions/{id}/actions/replay", this::replay)
            .add("POST", "/executions/{id}/actions/resume", this::resume)
            .add("POST", "/executions/{id}/actions/pause", this::pause)
            .add("POST", "/executions/{id}/actions/force-run", this::forceRun)
            .add("POST", "/executions/{id}/actions/unqueue", this::unqueue)
            .add("POST", "/executions/{id}/actions/labels", this::labels)
            .add("POST", "/executions/{id}/actions/change-status", this::changeStatus);
    }

    private Reply kill(Request request) throws Exception {
        var execution = find(request);
        var cascade = request.query("isOnKillCascade").map(Boolean::parseBoolean).orElse(true);
        if (execution.getState().isTerminated() && !cascade) {
            throw new IllegalStateException("Execution is already finished, can't kill it");
        }
        commands.kill(execution.getId(), cascade);
        return show(execution.getId());
    }

    private Reply restart(Request request) throws Exception {
        var execution = find(request);
        var revision = revision(request, execution);
        return send(execution, id -> Restart.from(execution, revision).withOperationId(id));
    }

    private Reply replay(Request request) throws Exception {
        var execution = find(request);
        var revision = revision(request, execution);
        var replayId = IdUtils.create();
        var replay = Replay.from(execution, replayId, request.query("taskRunId").orElse(null), revision,
            request.query("breakpoints").orElse(null));
        commands.send(replayId, replay::withOperationId);
        return show(replayId);
    }

    private Reply resume(Request request) throws Exception {
        var parts = Multipart.of(request);
        var execution = find(request);
        if (!execution.getState().isPaused()) {
            throw new IllegalStateException("Execution is not paused, can't resume it");
        }
        var flow = flows.findByExecution(execution);
        var inputs = service.readInputs(execution, flow, Flux.fromIterable(parts)).block();
        var resumed = io.kestra.plugin.core.flow.Pause.Resumed.now();
        return send(execution, id -> Resume.from(execution, resumed, inputs).withOperationId(id));
    }

    private Reply pause(Request request) throws Exception {
        var execution = find(request);
        if (!execution.getState().isRunning()) {
            throw new IllegalStateException("Execution is not running, can't pause it");
        }
        return send(execution, id -> Pause.from(execution).withOperationId(id));
    }

    private Reply forceRun(Request request) throws Exception {
        var execution = find(request);
        if (execution.getState().isTerminated()) {
            throw new IllegalArgumentException("Only non terminated executions can be forced run.");
        }
        return send(execution, id -> ForceRun.from(execution).withOperationId(id));
    }

    private Reply unqueue(Request request) throws Exception {
        var execution = find(request);
        if (!execution.getState().isQueued()) {
            throw new IllegalArgumentException("Only QUEUED executions can be unqueued");
        }
        var state = request.query("state").map(ExecutionActions::state).orElse(State.Type.RUNNING);
        return send(execution, id -> Unqueue.from(execution, state).withOperationId(id));
    }

    private Reply labels(Request request) throws Exception {
        var labels = Json.mapper().readValue(request.body(), LABELS);
        var execution = find(request);
        return send(execution, id -> UpdateLabels.from(execution, labels).withOperationId(id));
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
        return send(execution, id -> UpdateStatus.from(execution, status).withOperationId(id));
    }

    private Reply send(Execution execution, Function<String, ExecutionCommand> command) throws Exception {
        commands.send(execution.getId(), command);
        return show(execution.getId());
    }

    private Reply show(String id) {
        return Reply.ok(ExecutionJson.whole(Executions.find(repository, id)));
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

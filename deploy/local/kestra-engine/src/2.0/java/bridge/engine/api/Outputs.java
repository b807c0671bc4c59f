package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.exceptions.NotFoundException;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.TaskRun;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.TaskOutputRepositoryInterface;
import io.kestra.core.services.ExecutionOutputService;
import io.kestra.core.services.TaskOutputService;
import io.micronaut.context.ApplicationContext;
import java.util.Map;

/** Outputs, which 2.0 keeps apart from the execution. */
final class Outputs {
    record Information(String taskId, String taskRunId, String value, Integer iteration, boolean inline) {
        static Information of(TaskRun taskRun, boolean inline) {
            return new Information(taskRun.getTaskId(), taskRun.getId(), taskRun.getValue(), taskRun.getIteration(), inline);
        }
    }

    private final ExecutionRepositoryInterface executions;
    private final TaskOutputRepositoryInterface taskOutputs;
    private final ExecutionOutputService executionService;
    private final TaskOutputService taskService;

    Outputs(ApplicationContext context) {
        this.executions = context.getBean(ExecutionRepositoryInterface.class);
        this.taskOutputs = context.getBean(TaskOutputRepositoryInterface.class);
        this.executionService = context.getBean(ExecutionOutputService.class);
        this.taskService = context.getBean(TaskOutputService.class);
    }

    void addTo(Router router) {
        router
            .add("GET", "/outputs/executions/{id}", this::ofExecution)
            .add("GET", "/outputs/tasks/{id}", this::ofTasks)
            .add("GET", "/outputs/tasks/{id}/{taskRunId}", this::ofTaskRun);
    }

    private Reply ofExecution(Request request) throws Exception {
        var outputs = executionService.getOutputs(find(request));
        return Reply.ok(outputs == null ? Map.of() : outputs);
    }

    /** Which task runs have outputs; what they are is asked one by one. */
    private Reply ofTasks(Request request) {
        var execution = find(request);
        return Reply.ok(taskOutputs.findByExecution(execution).stream()
            .flatMap(output -> execution.findTaskRunByTaskRunIdIfPresent(output.taskRunId()).stream()
                .map(taskRun -> Information.of(taskRun, output.value() != null)))
            .toList());
    }

    private Reply ofTaskRun(Request request) throws Exception {
        var taskRun = find(request).findTaskRunByTaskRunIdIfPresent(request.variable("taskRunId")).orElseThrow(NotFoundException::new);
        return Reply.ok(taskService.getOutputs(taskRun));
    }

    private Execution find(Request request) {
        return executions.findById(TENANT, request.variable("id")).orElseThrow(NotFoundException::new);
    }
}

package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.TaskRun;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.repositories.TaskOutputRepositoryInterface;
import io.kestra.core.services.ExecutionOutputService;
import io.kestra.core.services.TaskOutputService;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;

/** Outputs, which 2.0 keeps apart from the execution. */
@Controller(Api.ROOT + "/outputs")
record Outputs(
    ExecutionRepositoryInterface executions, TaskOutputRepositoryInterface taskOutputs, ExecutionOutputService executionService,
    TaskOutputService taskService
) {
    record Information(String taskId, String taskRunId, String value, Integer iteration, boolean inline) {
        static Information of(TaskRun taskRun, boolean inline) {
            return new Information(taskRun.getTaskId(), taskRun.getId(), taskRun.getValue(), taskRun.getIteration(), inline);
        }
    }

    @Get("/executions/{id}")
    Object ofExecution(String id) throws Exception {
        var outputs = executionService.getOutputs(find(id));
        return outputs == null ? Map.of() : outputs;
    }

    /** Which task runs have outputs; what they are is asked one by one. */
    @Get("/tasks/{id}")
    List<Information> ofTasks(String id) {
        var execution = find(id);
        return taskOutputs.findByExecution(execution).stream()
            .flatMap(output -> execution.findTaskRunByTaskRunIdIfPresent(output.taskRunId()).stream()
                .map(taskRun -> Information.of(taskRun, output.value() != null)))
            .toList();
    }

    @Get("/tasks/{id}/{taskRunId}")
    Object ofTaskRun(String id, String taskRunId) throws Exception {
        var taskRun = find(id).findTaskRunByTaskRunIdIfPresent(taskRunId).orElseThrow(() -> new NoSuchElementException());
        return taskService.getOutputs(taskRun);
    }

    private Execution find(String id) {
        return Executions.find(executions, id);
    }
}

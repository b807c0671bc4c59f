package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.ExecutionKilled;
import io.kestra.core.models.executions.ExecutionKilledExecution;
import io.kestra.core.queues.QueueException;
import io.kestra.core.queues.QueueFactoryInterface;
import io.kestra.core.queues.QueueInterface;
import jakarta.inject.Named;
import jakarta.inject.Singleton;

/** Hands the executor of Kestra 1.3 what it shall do, and doesn't wait until it's done. */
@Singleton
record Queues(
    @Named(QueueFactoryInterface.EXECUTION_NAMED) QueueInterface<Execution> executions,
    @Named(QueueFactoryInterface.KILL_NAMED) QueueInterface<ExecutionKilled> kills
) {
    /** Send a new execution, or a new state of one, which is stored by that as well. */
    Execution send(Execution execution) throws QueueException {
        executions.emit(execution);
        return execution;
    }

    /** Ask for the end of an execution, and of its children when it cascades. */
    void kill(String executionId, boolean cascade) throws QueueException {
        kills.emit(ExecutionKilledExecution.builder()
            .tenantId(Api.TENANT)
            .state(ExecutionKilled.State.REQUESTED)
            .executionId(executionId)
            .isOnKillCascade(cascade)
            .build());
    }
}

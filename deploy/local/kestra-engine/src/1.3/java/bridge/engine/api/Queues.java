package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.executions.ExecutionKilled;
import io.kestra.core.models.executions.ExecutionKilledExecution;
import io.kestra.core.queues.QueueException;
import io.kestra.core.queues.QueueFactoryInterface;
import io.kestra.core.queues.QueueInterface;
import io.micronaut.context.ApplicationContext;
import io.micronaut.inject.qualifiers.Qualifiers;

/** Hands the executor of Kestra 1.3 what it shall do, and doesn't wait until it's done. */
final class Queues {
    private final QueueInterface<Execution> executions;
    private final QueueInterface<ExecutionKilled> kills;

    @SuppressWarnings("unchecked")
    Queues(ApplicationContext context) {
        this.executions = context.getBean(QueueInterface.class, Qualifiers.byName(QueueFactoryInterface.EXECUTION_NAMED));
        this.kills = context.getBean(QueueInterface.class, Qualifiers.byName(QueueFactoryInterface.KILL_NAMED));
    }

    /** Send a new execution, or a new state of one, which is stored by that as well. */
    Execution send(Execution execution) throws QueueException {
        executions.emit(execution);
        return execution;
    }

    /** Ask for the end of an execution, and of its children when it cascades. */
    void kill(String executionId, boolean cascade) throws QueueException {
        kills.emit(ExecutionKilledExecution.builder()
            .tenantId(Routes.TENANT)
            .state(ExecutionKilled.State.REQUESTED)
            .executionId(executionId)
            .isOnKillCascade(cascade)
            .build());
    }
}

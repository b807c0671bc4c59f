package bridge.engine.api;

import io.kestra.core.models.flows.FlowWithSource;
import io.kestra.core.models.flows.GenericFlow;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.FlowService;
import jakarta.inject.Singleton;

/** Keeps flows as Kestra 1.3 does: created by its flow service, updated in its repository. */
@Singleton
record FlowStore(FlowService service, FlowRepositoryInterface repository) {
    FlowWithSource create(GenericFlow flow) throws Exception {
        return service.create(flow, true);
    }

    FlowWithSource update(GenericFlow flow, FlowWithSource previous) {
        return repository.update(flow, previous);
    }
}

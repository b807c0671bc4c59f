package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.models.QueryFilter;
import io.kestra.core.models.flows.FlowSource;
import io.kestra.core.models.flows.FlowWithSource;
import io.kestra.core.models.flows.GenericFlow;
import io.kestra.core.repositories.FlowRepositoryInterface;
import io.kestra.core.services.FlowService;
import io.micronaut.context.ApplicationContext;
import java.util.Arrays;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.function.Function;

/** Flows: create, read, update, delete, validate, search. */
final class Flows {
    private static final String DOCUMENT_END = "\\n+---\\n*?";

    private final FlowService service;
    private final FlowStore store;
    private final FlowRepositoryInterface repository;

    Flows(ApplicationContext context) {
        this.service = context.getBean(FlowService.class);
        this.store = new FlowStore(context);
        this.repository = context.getBean(FlowRepositoryInterface.class);
    }

    void addTo(Router router) {
        router
            .add("POST", "/flows", this::create)
            .add("POST", "/flows/validate", this::validate)
            .add("GET", "/flows/search", this::search)
            .add("GET", "/flows/{namespace}", this::list)
            .add("GET", "/flows/{namespace}/{id}", this::get)
            .add("PUT", "/flows/{namespace}/{id}", this::update)
            .add("DELETE", "/flows/{namespace}/{id}", this::delete);
    }

    private Reply create(Request request) throws Exception {
        return Reply.ok(store.create(GenericFlow.fromYaml(TENANT, request.text())));
    }

    private Reply update(Request request) throws Exception {
        var previous = find(request);
        return Reply.ok(store.update(GenericFlow.fromYaml(TENANT, request.text()), previous));
    }

    private Reply get(Request request) {
        var revision = request.number("revision");
        var namespace = request.variable("namespace");
        var flow = repository.findByIdWithSource(TENANT, namespace, request.variable("id"), revision)
            .orElseThrow(() -> new NoSuchElementException("Flow not found"));
        return Reply.ok(request.flag("source") ? flow : flow.toFlow());
    }

    private Reply delete(Request request) {
        service.delete(find(request));
        return Reply.empty(204);
    }

    private Reply list(Request request) {
        return Reply.ok(repository.findByNamespace(TENANT, request.variable("namespace")));
    }

    private Reply search(Request request) {
        var filters = Filters.of(request, QueryFilter.Resource.FLOW);
        return Pages.reply(repository.find(Pages.of(request, Function.identity()), TENANT, filters));
    }

    private Reply validate(Request request) throws Exception {
        var sources = Arrays.stream(request.text().split(DOCUMENT_END))
            .filter(source -> !source.isBlank())
            .map(source -> new FlowSource(null, source))
            .toList();
        return Reply.ok(service.validate(TENANT, List.copyOf(sources)));
    }

    private FlowWithSource find(Request request) {
        return repository.findByIdWithSource(TENANT, request.variable("namespace"), request.variable("id"))
            .orElseThrow(() -> new NoSuchElementException("Flow not found"));
    }
}

package bridge.engine.api;

import static bridge.engine.api.Routes.TENANT;

import bridge.engine.http.Reply;
import bridge.engine.http.Request;
import bridge.engine.http.Router;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.storages.StorageContext;
import io.kestra.core.storages.StorageInterface;
import io.micronaut.context.ApplicationContext;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Path;
import java.util.Map;

/** The files that an execution left in Kestra's storage. */
final class ExecutionFiles {
    private final ExecutionRepositoryInterface repository;
    private final StorageInterface storage;

    ExecutionFiles(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.storage = context.getBean(StorageInterface.class);
    }

    void addTo(Router router) {
        router
            .add("GET", "/executions/{id}/file", this::download)
            .add("GET", "/executions/{id}/file/metas", this::size);
    }

    private Reply download(Request request) throws IOException {
        var execution = Executions.find(repository, request.variable("id"));
        var path = path(request, execution);
        var content = storage.get(TENANT, execution.getNamespace(), path);
        var name = String.valueOf(Path.of(path.getPath()).getFileName()).replaceAll("[^ !#-~]", "_");
        var headers = Map.of("Content-Disposition", "attachment; filename=\"" + name + "\"");
        return Reply.stream("application/octet-stream", headers, output -> {
            try (content) {
                content.transferTo(output);
            }
        });
    }

    private Reply size(Request request) throws IOException {
        var execution = Executions.find(repository, request.variable("id"));
        var attributes = storage.getAttributes(TENANT, execution.getNamespace(), path(request, execution));
        return Reply.ok(Map.of("size", attributes.getSize()));
    }

    /** Only what lies below the execution itself is handed out. */
    private static URI path(Request request, Execution execution) {
        var path = URI.create(request.required("path"));
        var prefix = StorageContext.forExecution(execution).getExecutionStorageURI().getPath();
        if (path.getPath() == null || !path.getPath().startsWith(prefix)) {
            throw new IllegalArgumentException("Invalid prefix path");
        }
        return path;
    }
}

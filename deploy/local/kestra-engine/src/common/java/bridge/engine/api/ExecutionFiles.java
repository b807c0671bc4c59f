package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.storages.StorageContext;
import io.kestra.core.storages.StorageInterface;
import io.micronaut.http.MediaType;
import io.micronaut.http.annotation.Controller;
import io.micronaut.http.annotation.Get;
import io.micronaut.http.annotation.QueryValue;
import io.micronaut.http.server.types.files.StreamedFile;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Path;
import java.util.Map;

/** The files that an execution left in Kestra's storage. */
@Controller(Api.EXECUTIONS + "/{id}/file")
record ExecutionFiles(ExecutionRepositoryInterface repository, StorageInterface storage) {
    @Get(produces = MediaType.APPLICATION_OCTET_STREAM)
    StreamedFile download(String id, @QueryValue URI path) throws IOException {
        var execution = Executions.find(repository, id);
        var content = storage.get(TENANT, execution.getNamespace(), within(execution, path));
        return new StreamedFile(content, MediaType.APPLICATION_OCTET_STREAM_TYPE)
            .attach(String.valueOf(Path.of(path.getPath()).getFileName()));
    }

    @Get("/metas")
    Object size(String id, @QueryValue URI path) throws IOException {
        var execution = Executions.find(repository, id);
        return Map.of("size", storage.getAttributes(TENANT, execution.getNamespace(), within(execution, path)).getSize());
    }

    /** Only what lies below the execution itself is handed out. */
    private static URI within(Execution execution, URI path) {
        var prefix = StorageContext.forExecution(execution).getExecutionStorageURI().getPath();
        if (path.getPath() == null || !path.getPath().startsWith(prefix)) {
            throw new IllegalArgumentException("Invalid prefix path");
        }
        return path;
    }
}

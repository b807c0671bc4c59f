package io.kestra.plugin.scripts.shell;

import io.kestra.core.models.property.Property;
import io.kestra.core.models.tasks.RunnableTask;
import io.kestra.core.runners.RunContext;
import io.kestra.plugin.scripts.exec.AbstractExecScript;
import io.kestra.plugin.scripts.exec.scripts.models.ScriptOutput;
import jakarta.validation.constraints.NotNull;
import java.util.List;

/** A whole shell script in one property: the stand-in beside {@link Commands}. */
public class Script extends AbstractExecScript implements RunnableTask<ScriptOutput> {
    private Property<String> containerImage = Property.ofValue("ubuntu");

    @NotNull
    private Property<String> script;

    @Override
    public Property<String> getContainerImage() {
        return containerImage;
    }

    public Property<String> getScript() {
        return script;
    }

    @Override
    public ScriptOutput run(RunContext runContext) throws Exception {
        var commands = commands(runContext);
        return commands
            .withInterpreter(interpreter)
            .withBeforeCommands(beforeCommands)
            .withBeforeCommandsWithOptions(true)
            .withCommands(Property.ofValue(List.of(commands.render(runContext, script))))
            .run();
    }
}

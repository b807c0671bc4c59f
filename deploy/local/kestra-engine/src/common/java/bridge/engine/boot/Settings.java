package bridge.engine.boot;

import java.nio.file.Path;

/** What the engine is told by system properties ({@code engine.port}) or environment variables ({@code ENGINE_PORT}). */
public record Settings(
    String host, int port, int managementPort, Path directory, Database database, String username, String password,
    int workerThreads, boolean executor
) {
    /** In place of a port: don't listen. */
    static final int NO_PORT = -1;
    static final String DATABASE_USER = "sa";

    /** Where executions and flows are kept. */
    public enum Database { MEMORY, FILE }

    /** Read them all; a value that can't be used is an {@link IllegalArgumentException} that names its setting. */
    public static Settings read() {
        return new Settings(
            text("host", "127.0.0.1"),
            number("port", 8080),
            number("management.port", NO_PORT),
            Path.of(text("directory", "data")).toAbsolutePath(),
            readDatabase(),
            text("username", "admin@example.org"),
            text("password", "Engine-0000"),
            number("worker.threads", 32),
            !text("executor", "on").equals("off")
        );
    }

    /** The address of the database that H2 opens. */
    String jdbcUrl() {
        var common = ";DB_CLOSE_DELAY=-1;DB_CLOSE_ON_EXIT=FALSE;TIME ZONE=UTC";
        return switch (database) {
            case MEMORY -> "jdbc:h2:mem:kestra" + common;
            // Without WRITE_DELAY=0 a commit reaches the disk later, and a kill loses executions that were accepted.
            case FILE -> "jdbc:h2:file:" + directory.resolve("database") + common + ";WRITE_DELAY=0";
        };
    }

    private static Database readDatabase() {
        var name = text("database", "memory");
        try {
            return Database.valueOf(name.toUpperCase());
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("engine.database is memory or file, not " + name);
        }
    }

    private static int number(String name, int fallback) {
        var value = text(name, String.valueOf(fallback));
        try {
            return Integer.parseInt(value.strip());
        } catch (NumberFormatException e) {
            throw new IllegalArgumentException("engine." + name + " is a number, not " + value);
        }
    }

    private static String text(String name, String fallback) {
        var property = System.getProperty("engine." + name);
        var value = property != null ? property : System.getenv("ENGINE_" + name.replace('.', '_').toUpperCase());
        return value == null || value.isBlank() ? fallback : value;
    }
}

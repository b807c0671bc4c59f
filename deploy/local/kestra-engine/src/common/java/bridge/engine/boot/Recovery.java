package bridge.engine.boot;

import java.sql.DriverManager;
import java.sql.SQLException;

/**
 * Opens the database file once and closes it again, before Kestra does. After a kill amid a transaction, H2 2.4 rolls the
 * transaction back before it knows the columns of its tables, and for as long as the database stays open it then reads the index on
 * an execution's state as plain numbers: a search by state fails with "Data conversion error". The second opening has nothing to
 * roll back.
 */
final class Recovery {
    private Recovery() {
    }

    static void run(Settings settings) throws SQLException {
        try (var connection = DriverManager.getConnection(settings.jdbcUrl(), Settings.DATABASE_USER, "");
             var statement = connection.createStatement()) {
            statement.execute("SHUTDOWN");
        }
    }
}

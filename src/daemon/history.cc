#include "daemon/history.h"

#include <sqlite3.h>

namespace godwit::daemon {
namespace {

// What is asked for has columns, so that people can use sqlite3 on the file; the whole is in
// `result`.
constexpr const char* schema =
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=NORMAL;"
    "CREATE TABLE IF NOT EXISTS migrations ("
    " id TEXT PRIMARY KEY, capsule TEXT NOT NULL, capsule_id TEXT NOT NULL, uid INTEGER NOT NULL,"
    " source TEXT NOT NULL, target TEXT NOT NULL, mode TEXT NOT NULL, outcome TEXT NOT NULL,"
    " reason TEXT NOT NULL, started_realtime_us INTEGER NOT NULL, downtime_us INTEGER NOT NULL,"
    " total_us INTEGER NOT NULL, bytes_sent INTEGER NOT NULL, result BLOB NOT NULL);"
    "CREATE INDEX IF NOT EXISTS migrations_started ON migrations (started_realtime_us);";

Error sqlite_error(sqlite3* db, const char* what) {
  return make_error(Errc::internal, "history: {}: {}", what, sqlite3_errmsg(db));
}

class Statement {
 public:
  static Result<Statement> prepare(sqlite3* db, const char* sql) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, nullptr) != SQLITE_OK) {
      return sqlite_error(db, sql);
    }
    return Statement(db, statement);
  }
  Statement(Statement&& other) noexcept
      : db_(other.db_), statement_(std::exchange(other.statement_, nullptr)) {}
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  Statement& operator=(Statement&&) = delete;
  ~Statement() { sqlite3_finalize(statement_); }

  // In the order of the question marks. The values must outlive the statement's steps.
  void bind(const std::string& text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()),
                      SQLITE_STATIC);
  }
  void bind(std::int64_t number) { sqlite3_bind_int64(statement_, ++bound_, number); }
  void bind_blob(const std::string& bytes) {
    sqlite3_bind_blob(statement_, ++bound_, bytes.data(), static_cast<int>(bytes.size()),
                      SQLITE_STATIC);
  }
  Result<bool> step() {  // True: a row is there.
    const int code = sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return sqlite_error(db_, "step");
  }
  std::string blob(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    const int size = sqlite3_column_bytes(statement_, column);
    return data == nullptr
               ? std::string()
               : std::string(static_cast<const char*>(data), static_cast<std::size_t>(size));
  }

 private:
  Statement(sqlite3* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
  sqlite3* db_;
  sqlite3_stmt* statement_;
  int bound_ = 0;
};

}  // namespace

Result<std::unique_ptr<History>> History::open(const std::string& path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  std::unique_ptr<History> history(new History(db));
  if (code != SQLITE_OK) return sqlite_error(db, path.c_str());
  sqlite3_busy_timeout(db, 2000);
  if (sqlite3_exec(db, schema, nullptr, nullptr, nullptr) != SQLITE_OK) {
    return sqlite_error(db, path.c_str());
  }
  return history;
}

History::~History() { sqlite3_close(db_); }

Result<void> History::record(const api::MigrationResult& m) {
  const std::lock_guard lock(mutex_);
  const std::string whole = m.SerializeAsString();
  {
    Statement insert = TRY(Statement::prepare(
        db_, "INSERT OR REPLACE INTO migrations VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"));
    for (const auto* text : {&m.id(), &m.capsule(), &m.capsule_id()}) insert.bind(*text);
    insert.bind(m.uid());
    for (const auto* text : {&m.source(), &m.target(), &m.mode(), &m.outcome(), &m.reason()}) {
      insert.bind(*text);
    }
    insert.bind(m.started_realtime_us());
    insert.bind(m.downtime_us());
    insert.bind(m.total_us());
    insert.bind(static_cast<std::int64_t>(m.bytes_sent()));
    insert.bind_blob(whole);
    TRY(insert.step());
  }
  Statement prune = TRY(Statement::prepare(
      db_,
      "DELETE FROM migrations WHERE started_realtime_us < (SELECT started_realtime_us FROM "
      "migrations ORDER BY started_realtime_us DESC LIMIT 1 OFFSET ?)"));
  prune.bind(kept_max);
  TRY(prune.step());
  return {};
}

Result<std::vector<api::MigrationResult>> History::list(const Filter& filter) {
  const std::lock_guard lock(mutex_);
  Statement query = TRY(Statement::prepare(
      db_,
      "SELECT result FROM migrations WHERE (? OR uid = ?) AND (? OR capsule = ? OR capsule_id = ?) "
      "ORDER BY started_realtime_us DESC LIMIT ?"));
  query.bind(filter.any_user ? 1 : 0);
  query.bind(filter.uid);
  query.bind(filter.capsule.empty() ? 1 : 0);
  query.bind(filter.capsule);
  query.bind(filter.capsule);
  query.bind(filter.limit);
  std::vector<api::MigrationResult> migrations;
  while (TRY(query.step())) {
    api::MigrationResult migration;
    if (!migration.ParseFromString(query.blob(0))) {
      return make_error(Errc::invalid, "history: a row is damaged");
    }
    migrations.push_back(std::move(migration));
  }
  return migrations;
}

}  // namespace godwit::daemon

#include "daemon/store.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <filesystem>

#include "base/io.h"
#include "base/log.h"

namespace godwit::daemon {
namespace {

Result<void> unlink_if_there(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    return os_error(fmt::format("unlink({})", path));
  return {};
}

Result<node::CapsuleRecord> load_record(const std::string& path) {
  const std::string text = TRY(read_file(path));
  node::CapsuleRecord record;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &record);
  if (!status.ok()) return make_error(Errc::invalid, "{}: {}", path, status.ToString());
  return record;
}

}  // namespace

Result<Store> Store::open(const std::string& run_dir) {
  const std::string dir = run_dir + "/registry";
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return os_error(fmt::format("mkdir({})", dir), error.value());
  std::filesystem::permissions(dir, std::filesystem::perms::owner_all, error);
  if (error) return os_error(fmt::format("chmod({})", dir), error.value());
  return Store(dir);
}

std::string Store::path(const CapsuleId& id, const char* suffix) const {
  return fmt::format("{}/{}{}", dir_, id, suffix);
}

Result<std::vector<node::CapsuleRecord>> Store::load() const {
  std::vector<node::CapsuleRecord> records;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
    if (entry.path().extension() != ".json") continue;
    auto record = load_record(entry.path());
    if (record.ok()) {
      records.push_back(std::move(record).value());
    } else {
      LOG(error, "record of a capsule is damaged: {}", record.error().what());
    }
  }
  if (error) return os_error(fmt::format("readdir({})", dir_), error.value());
  return records;
}

Result<void> Store::save(const node::CapsuleRecord& record) const {
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  const auto status = google::protobuf::util::MessageToJsonString(record, &text, options);
  if (!status.ok()) {
    return make_error(Errc::internal, "record of {}: {}", record.spec().id(), status.ToString());
  }
  return replace_file(path(CapsuleId{record.spec().id()}, ".json"), text, false);
}

Result<void> Store::remove(const CapsuleId& id) const {
  TRY(unlink_if_there(path(id, ".log")));
  return unlink_if_there(path(id, ".json"));
}

Result<void> Store::save_log(const CapsuleId& id, const node::SavedLog& log) const {
  return replace_file(path(id, ".log"), log.SerializeAsString(), false);
}

Result<node::SavedLog> Store::load_log(const CapsuleId& id) const {
  const std::string text = TRY(read_file(path(id, ".log")));
  node::SavedLog log;
  if (!log.ParseFromString(text)) return make_error(Errc::invalid, "{}: damaged", path(id, ".log"));
  return log;
}

Result<std::map<std::string, std::string>> Store::load_moved() const {
  std::map<std::string, std::string> moved;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
    if (entry.path().extension() != ".moved") continue;
    moved[entry.path().stem()] = TRY(read_file(entry.path()));
  }
  if (error) return os_error(fmt::format("readdir({})", dir_), error.value());
  return moved;
}

Result<void> Store::save_moved(const CapsuleId& id, const NodeId& to) const {
  return replace_file(path(id, ".moved"), to.value, false);
}

Result<void> Store::forget_moved(const CapsuleId& id) const {
  return unlink_if_there(path(id, ".moved"));
}

}  // namespace godwit::daemon

#include "migrate/fault_keeper.h"

#include <memory>
#include <mutex>

#include "capsule/shell.h"

namespace godwit::migrate {

Result<memory::TargetMemory::Keeper> fault_keeper(const NodeEnv& env, const CapsuleId& id) {
  struct Connection {
    explicit Connection(capsule::InitClient client) : init(std::move(client)) {}
    std::mutex mutex;
    capsule::InitClient init;
  };
  auto connection = std::make_shared<Connection>(
      TRY(capsule::InitClient::connect(capsule::Shell::socket_path(env, id))));
  memory::TargetMemory::Keeper keeper;
  keeper.hold = [connection](const std::string& tag, int fd) {
    const std::lock_guard lock(connection->mutex);
    return connection->init.hold_fds(tag, std::span(&fd, 1));
  };
  keeper.fetch = [connection](const std::string& tag) -> Result<UniqueFd> {
    const std::lock_guard lock(connection->mutex);
    std::vector<UniqueFd> fds = TRY(connection->init.fetch_fds(tag).with(tag));
    if (fds.empty()) return make_error(Errc::not_found, "init holds no {}", tag);
    if (fds.size() != 1) return make_error(Errc::invalid, "init holds {} of {}", fds.size(), tag);
    return std::move(fds.front());
  };
  keeper.drop = [connection](const std::string& tag) {
    const std::lock_guard lock(connection->mutex);
    return connection->init.drop_fds(tag);
  };
  return keeper;
}

}  // namespace godwit::migrate

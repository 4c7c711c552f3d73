#include "capsule/init_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/clock.h"
#include "base/io.h"
#include "sys/namespaces.h"

namespace godwit::capsule {
namespace {

constexpr int send_ms_max = 30'000;
constexpr std::size_t relay_bytes_max = 16 << 20;

bool is_event(std::uint32_t type) { return type >= 200 && type < 300; }

// A message as bytes: POD structs and strings one after another.
template <typename T>
void append(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

Result<UniqueFd> memfd_with(const char* name, std::string_view bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd.valid()) return os_error(fmt::format("memfd_create({})", name));
  TRY(write_full(fd.get(), as_bytes(bytes)));
  return fd;
}

Result<int> wait_for(int fd, short events, int timeout_ms) {
  pollfd entry{fd, events, 0};
  std::int64_t deadline_us = monotonic_us() + std::int64_t{timeout_ms} * 1000;
  while (true) {
    int n = ::poll(&entry, 1, timeout_ms);
    if (n >= 0) return n;
    if (errno != EINTR) return os_error(fmt::format("poll(fd={})", fd));
    if (timeout_ms < 0) continue;
    std::int64_t left_us = deadline_us - monotonic_us();
    timeout_ms = left_us > 0 ? static_cast<int>(left_us / 1000) : 0;
  }
}

Result<std::string> encode(const SpawnRequest& request) {
  if (request.argv.empty()) return make_error(Errc::invalid, "spawn: no command");
  SpawnHead head{};
  head.uid = request.uid;
  head.gid = request.gid;
  head.groups = static_cast<std::uint32_t>(request.groups.size());
  head.argc = static_cast<std::uint32_t>(request.argv.size());
  head.envc = static_cast<std::uint32_t>(request.env.size());
  head.tty = request.tty ? 1 : 0;
  head.rows = request.rows;
  head.columns = request.columns;
  head.monotonic_delta_ns = request.clocks.monotonic_ns;
  head.boottime_delta_ns = request.clocks.boottime_ns;
  std::string out;
  append(out, head);
  for (std::uint32_t group : request.groups) append(out, group);
  auto add = [&](const std::string& text) {
    out += text;
    out += '\0';
  };
  add(request.cwd);
  for (const std::string& text : request.argv) add(text);
  for (const std::string& text : request.env) add(text);
  // A zero byte in the middle would shift what follows.
  auto zeros = static_cast<std::size_t>(std::count(
      out.begin() + sizeof(head) + static_cast<long>(4 * request.groups.size()), out.end(), '\0'));
  if (zeros != 1 + request.argv.size() + request.env.size())
    return make_error(Errc::invalid, "spawn: a string contains a zero byte");
  if (out.size() > spawn_bytes_max)
    return make_error(Errc::invalid, "spawn: arguments and environment exceed {} bytes",
                      spawn_bytes_max);
  return out;
}

// A pid of 0 says that it ended before we looked.
Result<pid_t> node_pid_of(int pidfd) {
  Result<pid_t> pid = sys::pid_of_pidfd(pidfd);
  if (pid.ok() || pid.error().code() != Errc::tracee_gone) return pid;
  return pid_t{0};
}

}  // namespace

Result<InitClient> InitClient::connect(const std::string& socket_path) {
  InitClient client;
  // Through its directory's descriptor, since a socket's own path has at most 107 bytes.
  std::size_t slash = socket_path.find_last_of('/');
  std::string folder = slash == std::string::npos ? "." : socket_path.substr(0, slash);
  std::string name = slash == std::string::npos ? socket_path : socket_path.substr(slash + 1);
  UniqueFd directory = TRY(open_fd(folder, O_PATH | O_DIRECTORY));
  client.socket_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!client.socket_.valid()) return os_error("socket(AF_UNIX, SOCK_SEQPACKET)");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string path = fmt::format("/proc/self/fd/{}/{}", directory.get(), name);
  if (path.size() >= sizeof(address.sun_path))
    return make_error(Errc::invalid, "socket name {}", name);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  // EAGAIN: its backlog is full of others that connect at the same time.
  std::int64_t deadline_us = monotonic_us() + 5'000'000;
  while (::connect(client.socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) !=
         0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN || monotonic_us() > deadline_us) {
      int number = errno;
      Error error = os_error(fmt::format("connect({})", socket_path), number);
      if (number != ENOENT && number != ECONNREFUSED) return error;
      return Error(Errc::not_found, error.what(), number);
    }
    timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(client.socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    return os_error("getsockopt(SO_PEERCRED)");
  client.init_pid_ = peer.pid;
  return client;
}

Result<void> InitClient::send(Message type, std::uint64_t a, std::uint64_t b,
                              std::span<const std::byte> payload, std::span<const int> fds) {
  if (payload.size() > payload_bytes_max || fds.size() > message_fds_max)
    return make_error(Errc::invalid, "message of {} bytes, {} descriptors", payload.size(),
                      fds.size());
  Header header{static_cast<std::uint32_t>(type), static_cast<std::uint32_t>(payload.size()), a, b};
  std::array<iovec, 2> parts{iovec{&header, sizeof(header)},
                             iovec{const_cast<std::byte*>(payload.data()), payload.size()}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * message_fds_max)> control{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = payload.empty() ? 1 : 2;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* entry = CMSG_FIRSTHDR(&message);
    entry->cmsg_level = SOL_SOCKET;
    entry->cmsg_type = SCM_RIGHTS;
    entry->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(entry), fds.data(), fds.size_bytes());
  }
  while (::sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET)
      return make_error(Errc::peer_lost, "the capsule's init is gone");
    if (errno != EAGAIN) return os_error(fmt::format("sendmsg(init, type={})", header.type));
    // Init doesn't read us while it can't send us: take what it sends, or both wait for ever.
    std::optional<Packet> packet = TRY(receive(0));
    if (packet.has_value()) {
      if (!is_event(packet->header.type))
        return make_error(Errc::internal, "init answered type {} unasked", packet->header.type);
      events_.push_back({static_cast<Message>(packet->header.type), packet->header.a,
                         packet->header.b, std::move(packet->payload)});
      continue;
    }
    if (TRY(wait_for(socket_.get(), POLLIN | POLLOUT, send_ms_max)) == 0)
      return make_error(Errc::timeout, "init takes no message for {} ms", send_ms_max);
  }
  return {};
}

Result<std::optional<InitClient::Packet>> InitClient::receive(int timeout_ms) {
  Packet packet;
  packet.payload.resize(payload_bytes_max);
  std::array<iovec, 2> parts{iovec{&packet.header, sizeof(packet.header)},
                             iovec{packet.payload.data(), packet.payload.size()}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * message_fds_max)> control{};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t n;
  while ((n = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)) < 0) {
    if (errno == EINTR) continue;
    if (errno == ECONNRESET) return make_error(Errc::peer_lost, "the capsule's init is gone");
    if (errno != EAGAIN) return os_error("recvmsg(init)");
    if (timeout_ms == 0 || TRY(wait_for(socket_.get(), POLLIN, timeout_ms)) == 0)
      return std::optional<Packet>();
  }
  if (n == 0) return make_error(Errc::peer_lost, "the capsule's init is gone");
  for (cmsghdr* entry = CMSG_FIRSTHDR(&message); entry != nullptr;
       entry = CMSG_NXTHDR(&message, entry)) {
    if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
    std::size_t count = (entry->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(entry) + i * sizeof(int), sizeof(int));
      packet.fds.emplace_back(fd);
    }
  }
  if (static_cast<std::size_t>(n) != sizeof(Header) + packet.header.length)
    return make_error(Errc::invalid, "init: packet of {} bytes says {}", n, packet.header.length);
  packet.payload.resize(packet.header.length);
  return std::optional<Packet>(std::move(packet));
}

Result<InitClient::Packet> InitClient::request(Message type, std::uint64_t a, std::uint64_t b,
                                               std::span<const std::byte> payload,
                                               std::span<const int> fds) {
  auto number = static_cast<std::uint32_t>(type);
  TRY(send(type, a, b, payload, fds));
  std::int64_t deadline_us = monotonic_us() + std::int64_t{request_ms_max} * 1000;
  while (true) {
    std::int64_t left_ms = (deadline_us - monotonic_us()) / 1000;
    std::optional<Packet> packet = TRY(receive(left_ms > 0 ? static_cast<int>(left_ms) : 0));
    if (!packet.has_value())
      return make_error(Errc::timeout, "init doesn't answer request {} within {} ms", number,
                        request_ms_max);
    if (is_event(packet->header.type)) {
      events_.push_back({static_cast<Message>(packet->header.type), packet->header.a,
                         packet->header.b, std::move(packet->payload)});
      continue;
    }
    if (packet->header.type == (number | reply_bit)) return std::move(*packet);
    bool is_error = packet->header.type == static_cast<std::uint32_t>(Message::error);
    if (is_error && packet->header.b == number)
      return os_error(fmt::format("init: {}", packet->payload), static_cast<int>(packet->header.a));
    if (is_error) {
      events_.push_back(
          {Message::error, packet->header.a, packet->header.b, std::move(packet->payload)});
      continue;
    }
    return make_error(Errc::invalid, "init answered type {:#x} to request {}", packet->header.type,
                      number);
  }
}

Result<std::optional<InitEvent>> InitClient::next_event(int timeout_ms) {
  if (events_.empty()) {
    std::optional<Packet> packet = TRY(receive(timeout_ms));
    if (!packet.has_value()) return std::optional<InitEvent>();
    events_.push_back({static_cast<Message>(packet->header.type), packet->header.a,
                       packet->header.b, std::move(packet->payload)});
  }
  InitEvent event = std::move(events_.front());
  events_.pop_front();
  return std::optional<InitEvent>(std::move(event));
}

Result<Spawned> InitClient::spawn(const SpawnRequest& order) {
  std::string bytes = TRY(encode(order));
  UniqueFd memfd = TRY(memfd_with("godwit-spawn", bytes));
  int fd = memfd.get();
  Packet answer = TRY(request(Message::spawn, bytes.size(), 0, {}, {&fd, 1})
                          .with(fmt::format("start {}", order.argv[0])));
  if (answer.fds.size() != 1) return make_error(Errc::invalid, "spawn: answer without pidfd");
  Spawned out;
  out.pid = static_cast<pid_t>(answer.header.a);
  out.pidfd = std::move(answer.fds[0]);
  out.node_pid = TRY(node_pid_of(out.pidfd.get()));
  return out;
}

Result<UniqueFd> InitClient::clocks(const ClockDelta& delta) {
  Packet answer = TRY(request(Message::clocks, 0, 0, std::as_bytes(std::span(&delta, 1))));
  if (answer.fds.size() != 1) return make_error(Errc::invalid, "clocks: answer without descriptor");
  return std::move(answer.fds[0]);
}

Result<Skeleton> InitClient::skeleton(pid_t pid) {
  Packet answer = TRY(request(Message::skeleton, static_cast<std::uint64_t>(pid))
                          .with(fmt::format("skeleton {}", pid)));
  if (answer.fds.size() != 2)
    return make_error(Errc::invalid, "skeleton: answer without descriptors");
  Skeleton out;
  out.pid = static_cast<pid_t>(answer.header.a);
  out.channel_remote = static_cast<int>(answer.header.b);
  out.pidfd = std::move(answer.fds[0]);
  out.channel = std::move(answer.fds[1]);
  out.node_pid = TRY(node_pid_of(out.pidfd.get()));
  return out;
}

Result<pid_t> InitClient::last_pid() {
  return static_cast<pid_t>(TRY(request(Message::next_pid, no_value)).header.a);
}

Result<void> InitClient::set_last_pid(pid_t pid) {
  TRY(request(Message::next_pid, static_cast<std::uint64_t>(pid)));
  return {};
}

Result<std::string> InitClient::relay_get() {
  Packet answer = TRY(request(Message::relay_get));
  if (answer.fds.size() != 1)
    return make_error(Errc::invalid, "relay_get: answer without descriptor");
  if (answer.header.a > relay_bytes_max)
    return make_error(Errc::invalid, "relay_get: {} bytes", answer.header.a);
  std::string out(answer.header.a, '\0');
  if (::lseek(answer.fds[0].get(), 0, SEEK_SET) != 0) return os_error("lseek(relay state)");
  TRY(read_full(answer.fds[0].get(), std::as_writable_bytes(std::span(out.data(), out.size()))));
  return out;
}

Result<void> InitClient::make_terminal() {
  TRY(request(Message::terminal, 0, 0));
  return {};
}

Result<void> InitClient::relay_put(const std::string& state) {
  UniqueFd memfd = TRY(memfd_with("godwit-relay", state));
  int fd = memfd.get();
  TRY(request(Message::relay_put, state.size(), 0, {}, {&fd, 1}));
  return {};
}

Result<void> InitClient::relay_go() {
  TRY(request(Message::relay_go));
  return {};
}

Result<Attached> InitClient::attach(std::uint64_t out_from) {
  Packet answer = TRY(request(Message::attach, out_from));
  return Attached{answer.header.a, answer.header.b};
}

Result<void> InitClient::detach() {
  TRY(request(Message::detach));
  return {};
}

Result<void> InitClient::watch() {
  TRY(request(Message::watch));
  return {};
}

Result<void> InitClient::send_stdin(std::uint64_t from, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    std::span<const std::byte> now = bytes.first(std::min(bytes.size(), payload_bytes_max));
    TRY(send(Message::stdin_data, from, 0, now, {}));
    from += now.size();
    bytes = bytes.subspan(now.size());
  }
  return {};
}

Result<void> InitClient::send_stdin_eof(std::uint64_t end) {
  return send(Message::stdin_eof, end, 0, {}, {});
}

Result<void> InitClient::ack_output(std::uint64_t up_to) {
  return send(Message::out_ack, up_to, 0, {}, {});
}

Result<void> InitClient::set_winsize(std::uint16_t rows, std::uint16_t columns) {
  TRY(request(Message::winsize, std::uint64_t{rows} << 16 | columns));
  return {};
}

Result<void> InitClient::signal(int signal, SignalTo to) {
  TRY(request(Message::signal, static_cast<std::uint64_t>(signal), static_cast<std::uint64_t>(to))
          .with(fmt::format("signal {}", signal)));
  return {};
}

Result<Status> InitClient::status() {
  Packet answer = TRY(request(Message::status));
  if (answer.payload.size() != sizeof(Status))
    return make_error(Errc::invalid, "status: wrong length");
  Status out;
  std::memcpy(&out, answer.payload.data(), sizeof(out));
  return out;
}

Result<UniqueFd> InitClient::main_pidfd() {
  Packet answer = TRY(request(Message::status));
  if (answer.fds.empty()) return make_error(Errc::tracee_gone, "the main program doesn't run");
  return std::move(answer.fds[0]);
}

Result<Stdio> InitClient::stdio(bool original) {
  Packet answer = TRY(request(Message::stdio, original ? 1 : 0));
  Stdio out;
  if (answer.payload.size() != sizeof(out.info))
    return make_error(Errc::invalid, "stdio: wrong length");
  std::memcpy(&out.info, answer.payload.data(), sizeof(out.info));
  out.fds = std::move(answer.fds);
  return out;
}

Result<LogChunk> InitClient::read_log(std::uint64_t from) {
  Packet answer = TRY(request(Message::read_log, from));
  return LogChunk{answer.header.a, static_cast<int>(answer.header.b), std::move(answer.payload)};
}

Result<void> InitClient::hold_fds(const std::string& tag, std::span<const int> fds) {
  while (!fds.empty()) {
    std::span<const int> now = fds.first(std::min(fds.size(), message_fds_max));
    TRY(request(Message::hold_fd, 0, 0, as_bytes(tag), now).with(fmt::format("hold {}", tag)));
    fds = fds.subspan(now.size());
  }
  return {};
}

Result<std::vector<UniqueFd>> InitClient::fetch_fds(const std::string& tag) {
  std::vector<UniqueFd> out;
  while (true) {
    Packet answer = TRY(request(Message::fetch_fd, out.size(), 0, as_bytes(tag))
                            .with(fmt::format("fetch {}", tag)));
    for (UniqueFd& fd : answer.fds) out.push_back(std::move(fd));
    if (answer.fds.empty() || out.size() >= answer.header.a) return out;
  }
}

Result<void> InitClient::drop_fds(const std::string& tag) {
  TRY(request(Message::drop_fd, 0, 0, as_bytes(tag)).with(fmt::format("drop {}", tag)));
  return {};
}

Result<void> InitClient::set_hostname(const std::string& name) {
  TRY(request(Message::hostname, 0, 0, as_bytes(name)));
  return {};
}

Result<void> InitClient::shutdown() {
  TRY(request(Message::shutdown));
  return {};
}

}  // namespace godwit::capsule

#include "capsule/init/requests.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace godwit::init {
namespace {

using capsule::Header;
using capsule::Message;
using capsule::no_value;

// The payload as a tag: ended by a zero byte, not empty, not too long.
Fail read_tag(const Packet& request, char (&tag)[HeldFds::tag_bytes_max]) {
  std::size_t length = request.header.length;
  if (length == 0 || length >= sizeof(tag)) return fail("length of the tag", EINVAL);
  std::memcpy(tag, request.payload, length);
  tag[length] = 0;
  return ok();
}

template <typename T>
Fail read_struct(const Packet& request, T& out) {
  if (request.header.length != sizeof(T)) return fail("length of the payload", EINVAL);
  std::memcpy(&out, request.payload, sizeof(T));
  return ok();
}

template <typename T>
void write_struct(Packet& answer, const T& value) {
  std::memcpy(answer.payload, &value, sizeof(T));
  answer.header.length = sizeof(T);
}

// Takes the zero-ended string at `at`, or null if there is none.
const char* next_string(const char* data, std::size_t bytes, std::size_t& at) {
  if (at >= bytes) return nullptr;
  const void* end = std::memchr(data + at, 0, bytes - at);
  if (end == nullptr) return nullptr;
  const char* text = data + at;
  at = static_cast<std::size_t>(static_cast<const char*>(end) - data) + 1;
  return text;
}

Fail duplicate_into(Packet& answer, int fd) {
  int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return fail("fcntl(F_DUPFD_CLOEXEC)");
  answer.add_fd(copy);
  return ok();
}

}  // namespace

bool State::handle(Connection& client, Packet& request, Packet& answer) {
  answer.clear();
  bool streamed = request.header.type >= 100;
  Fail result = streamed ? stream(client, request) : dispatch(client, request, answer);
  if (!result.failed()) {
    answer.header.type = request.header.type | capsule::reply_bit;
    return !streamed;
  }
  answer.clear();
  answer.header = {static_cast<std::uint32_t>(Message::error), 0,
                   static_cast<std::uint64_t>(result.number), request.header.type};
  answer.header.length = static_cast<std::uint32_t>(
      std::snprintf(answer.payload, sizeof(answer.payload), "%s", result.what));
  return true;
}

Fail State::dispatch(Connection& client, Packet& request, Packet& answer) {
  const Header& head = request.header;
  switch (static_cast<Message>(head.type)) {
    case Message::spawn:
      return spawn(request, answer);
    case Message::clocks:
      return clocks(request, answer);
    case Message::skeleton:
      return skeleton(request, answer);
    case Message::next_pid:
      return next_pid(request, answer);
    case Message::relay_get:
      return relay_get(answer);
    case Message::relay_put:
      return relay_put(request);
    case Message::terminal:
      return relay.make_early_terminal();
    case Message::relay_go:
      return relay.kind() == Relay::Kind::none ? fail("nothing to relay", EINVAL)
                                               : (relay.go(), ok());
    case Message::attach:
      return attach(client, request, answer);
    case Message::detach:
      client.attached = false;
      return ok();
    case Message::watch:
      client.watching = true;
      return ok();
    case Message::winsize:
      return relay.set_winsize(static_cast<std::uint32_t>(head.a),
                               static_cast<std::uint32_t>(head.b));
    case Message::signal:
      return signal(request);
    case Message::status:
      return status(answer);
    case Message::hold_fd:
      return hold_fd(request);
    case Message::fetch_fd:
      return fetch_fd(request, answer);
    case Message::drop_fd:
      return drop_fd(request);
    case Message::stdio:
      return stdio(request, answer);
    case Message::read_log:
      return read_log(request, answer);
    case Message::shutdown:
      shutdown = true;
      return ok();
    case Message::hostname:
      return hostname(request);
    default:
      return fail("unknown request", ENOSYS);
  }
}

Fail State::stream(Connection& client, const Packet& request) {
  const Header& head = request.header;
  switch (static_cast<Message>(head.type)) {
    case Message::out_ack:
      relay.ack(head.a);
      return ok();
    case Message::stdin_data:
      // From one that was detached meanwhile: the next one starts where the program's input really
      // is.
      return client.attached ? relay.input(head.a, request.payload, head.length) : ok();
    case Message::stdin_eof:
      if (client.attached) relay.input_end(head.a);
      return ok();
    default:
      return fail("unknown packet", ENOSYS);
  }
}

Fail State::spawn(Packet& request, Packet& answer) {
  std::size_t bytes = request.header.a;
  if (request.fd_count != 1 || bytes < sizeof(capsule::SpawnHead) ||
      bytes > capsule::spawn_bytes_max)
    return fail("spawn wants its order in a memfd", EINVAL);
  if (relay.main_pid() != 0) return fail("the main program was started already", EBUSY);
  // No pointer array is longer than the strings plus their ends.
  std::size_t room = bytes + (bytes + 2) * sizeof(char*);
  void* memory = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return fail("mmap for the order");
  char** pointers = static_cast<char**>(memory);
  char* data = reinterpret_cast<char*>(pointers + bytes + 2);
  ssize_t n = ::pread(request.fds[0], data, bytes, 0);
  Fail result = n == static_cast<ssize_t>(bytes) ? spawn_from(data, bytes, pointers, answer)
                                                 : fail("read of the order", EINVAL);
  ::munmap(memory, room);
  return result;
}

Fail State::spawn_from(const char* data, std::size_t bytes, char** pointers, Packet& answer) {
  SpawnOrder order{};
  std::memcpy(&order.head, data, sizeof(order.head));
  std::size_t at = sizeof(order.head);
  if (order.head.groups > (bytes - at) / sizeof(std::uint32_t))
    return fail("groups of the order", EINVAL);
  order.groups = reinterpret_cast<const std::uint32_t*>(data + at);
  at += order.head.groups * sizeof(std::uint32_t);
  order.cwd = next_string(data, bytes, at);
  order.argv = pointers;
  std::size_t slot = 0;
  bool whole = order.cwd != nullptr && order.head.argc > 0 && order.head.argc <= bytes &&
               order.head.envc <= bytes;
  for (std::uint32_t i = 0; whole && i < order.head.argc; ++i)
    whole = (pointers[slot++] = const_cast<char*>(next_string(data, bytes, at))) != nullptr;
  pointers[slot++] = nullptr;
  order.env = pointers + slot;
  for (std::uint32_t i = 0; whole && i < order.head.envc; ++i)
    whole = (pointers[slot++] = const_cast<char*>(next_string(data, bytes, at))) != nullptr;
  if (!whole) return fail("strings of the order", EINVAL);
  pointers[slot] = nullptr;

  CHECK(
      new_clocks(clock_base, {order.head.monotonic_delta_ns, order.head.boottime_delta_ns}, tree));
  // A failed spawn may be tried again; the pipes of the first try do for the next.
  if (relay.kind() == Relay::Kind::none) {
    CHECK(order.head.tty != 0 ? relay.make_terminal(order.head.rows, order.head.columns)
                              : relay.make_pipes(nullptr));
  }
  if ((order.head.tty != 0) != (relay.kind() == Relay::Kind::terminal))
    return fail("stdio was made of the other kind", EBUSY);
  Child child;
  CHECK(spawn_main(tree, order, relay, child));
  relay.set_main(child.pid);
  relay.go();
  answer.header.a = static_cast<std::uint64_t>(child.pid);
  answer.add_fd(child.pidfd);
  return ok();
}

Fail State::skeleton(const Packet& request, Packet& answer) {
  if (request.header.a < 2 || request.header.a > (1U << 22))
    return fail("pid of a skeleton", EINVAL);
  Child child;
  int channel = -1;
  int remote = -1;
  CHECK(make_skeleton(tree, static_cast<pid_t>(request.header.a), child, channel, remote));
  answer.header.a = static_cast<std::uint64_t>(child.pid);
  answer.header.b = static_cast<std::uint64_t>(remote);
  answer.add_fd(child.pidfd);
  answer.add_fd(channel);
  return ok();
}

Fail State::clocks(const Packet& request, Packet& answer) {
  capsule::ClockDelta delta{};
  CHECK(read_struct(request, delta));
  CHECK(new_clocks(clock_base, delta, tree));
  return duplicate_into(answer, tree.time_namespace);
}

// The file is about the PID namespace of who reads or writes it: only a process inside can do it.
Fail State::next_pid(const Packet& request, Packet& answer) {
  int fd = ::open("/proc/sys/kernel/ns_last_pid", O_RDWR | O_CLOEXEC);
  if (fd < 0) return fail("open(ns_last_pid)");
  char text[32] = {};
  Fail result;
  if (request.header.a != no_value) {
    int length = std::snprintf(text, sizeof(text), "%llu",
                               static_cast<unsigned long long>(request.header.a));
    if (::write(fd, text, static_cast<std::size_t>(length)) != length)
      result = fail("write(ns_last_pid)");
  }
  std::memset(text, 0, sizeof(text));
  if (!result.failed() && ::pread(fd, text, sizeof(text) - 1, 0) <= 0)
    result = fail("read(ns_last_pid)");
  ::close(fd);
  answer.header.a = std::strtoull(text, nullptr, 10);
  return result;
}

Fail State::relay_get(Packet& answer) {
  int fd = ::memfd_create("godwit-relay", MFD_CLOEXEC);
  if (fd < 0) return fail("memfd_create");
  bool was_running = relay.running();
  Fail result = relay.get(fd, answer.header.a);
  if (result.failed()) {
    ::close(fd);
    if (was_running) relay.go();
    return result;
  }
  answer.add_fd(fd);
  return ok();
}

Fail State::relay_put(Packet& request) {
  if (request.fd_count != 1) return fail("relay_put wants a memfd", EINVAL);
  return relay.put(request.fds[0], request.header.a);
}

Fail State::attach(Connection& client, const Packet& request, Packet& answer) {
  for (Connection& other : clients) {
    if (other.fd < 0 || !other.attached || &other == &client) continue;
    other.attached = false;
    other.detached_due = true;
  }
  std::uint64_t from = request.header.a == no_value ? relay.acked() : request.header.a;
  if (from > relay.output().end()) return fail("output that doesn't exist yet", EINVAL);
  // Older than what is kept can only have been acknowledged: nothing unseen is left out.
  if (from < relay.output().begin()) from = relay.output().begin();
  client.attached = true;
  client.exit_told = false;
  client.out_next = from;
  client.ack_told = relay.input_written();
  relay.input_restarts();
  answer.header.a = relay.input_next();
  answer.header.b = from;
  return ok();
}

Fail State::signal(const Packet& request) {
  pid_t main = relay.main_pid();
  if (main == 0 || relay.exited()) return fail("the main program doesn't run", ESRCH);
  // The tree is being copied: a signal now might come after its pending ones were read, and be
  // lost.
  if (!relay.running()) return fail("the relay stands still", EAGAIN);
  pid_t to = main;
  if (request.header.b == static_cast<std::uint64_t>(capsule::SignalTo::foreground)) {
    pid_t group = relay.foreground_group();
    to = -(group > 0 ? group : ::getpgid(main));
  }
  // -1 would be everything in the capsule; getpgid can't fail on a child that isn't reaped.
  if (to == -1 || to == 0 || to == 1) return fail("no such group", ESRCH);
  return ::kill(to, static_cast<int>(request.header.a)) == 0 ? ok() : fail("kill");
}

Fail State::status(Packet& answer) {
  capsule::Status out{};
  out.main_pid = relay.main_pid();
  out.exited = relay.exited() ? 1 : 0;
  out.wait_status = relay.wait_status();
  out.relay_running = relay.running() ? 1 : 0;
  out.out_end = relay.output().end();
  out.out_acked = relay.acked();
  out.out_begin = relay.output().begin();
  out.stdin_next = relay.input_next();
  for (const Connection& client : clients) {
    out.clients += client.fd >= 0 ? 1 : 0;
    out.attached |= client.fd >= 0 && client.attached ? 1 : 0;
  }
  write_struct(answer, out);
  if (out.main_pid == 0 || out.exited != 0) return ok();
  // Nobody but us reaps it, so the number is its. On a target it may not be made yet.
  int fd = static_cast<int>(::syscall(SYS_pidfd_open, out.main_pid, 0));
  if (fd < 0) return errno == ESRCH ? ok() : fail("pidfd_open");
  answer.add_fd(fd);
  return ok();
}

Fail State::stdio(const Packet& request, Packet& answer) {
  capsule::StdioInfo info{};
  CHECK(relay.info(info));
  write_struct(answer, info);
  Fail opened = relay.open_program_ends(request.header.a != 0, answer.fds, answer.fd_count);
  return opened;
}

Fail State::read_log(const Packet& request, Packet& answer) {
  std::uint64_t from = request.header.a;
  if (from < relay.output().begin()) from = relay.output().begin();
  answer.header.a = from;
  if (from >= relay.output().end()) return ok();
  int stream = 1;
  iovec piece = relay.output_at(from, stream);
  std::memcpy(answer.payload, piece.iov_base, piece.iov_len);
  answer.header.length = static_cast<std::uint32_t>(piece.iov_len);
  answer.header.b = static_cast<std::uint64_t>(stream);
  return ok();
}

Fail State::hold_fd(Packet& request) {
  char tag[HeldFds::tag_bytes_max];
  CHECK(read_tag(request, tag));
  if (held.count + request.fd_count > static_cast<int>(capsule::held_fds_max))
    return fail("too many descriptors are held", EMFILE);
  for (int i = 0; i < request.fd_count; ++i) {
    std::memcpy(held.tags[held.count], tag, sizeof(tag));
    held.fds[held.count++] = request.take_fd(i);
  }
  return ok();
}

Fail State::fetch_fd(const Packet& request, Packet& answer) {
  char tag[HeldFds::tag_bytes_max];
  CHECK(read_tag(request, tag));
  std::uint64_t index = 0;
  for (int i = 0; i < held.count; ++i) {
    if (std::strcmp(held.tags[i], tag) != 0) continue;
    bool wanted =
        index >= request.header.a && answer.fd_count < static_cast<int>(capsule::message_fds_max);
    if (wanted) CHECK(duplicate_into(answer, held.fds[i]));
    ++index;
  }
  answer.header.a = index;
  return ok();
}

Fail State::drop_fd(const Packet& request) {
  char tag[HeldFds::tag_bytes_max];
  CHECK(read_tag(request, tag));
  int kept = 0;
  for (int i = 0; i < held.count; ++i) {
    if (std::strcmp(held.tags[i], tag) == 0) {
      ::close(held.fds[i]);
      continue;
    }
    if (kept != i) std::memcpy(held.tags[kept], held.tags[i], sizeof(held.tags[i]));
    held.fds[kept++] = held.fds[i];
  }
  held.count = kept;
  return ok();
}

Fail State::hostname(const Packet& request) {
  ::prctl(PR_SET_NAME, "godwit-init");
  return ::sethostname(request.payload, request.header.length) == 0 ? ok() : fail("sethostname");
}

}  // namespace godwit::init

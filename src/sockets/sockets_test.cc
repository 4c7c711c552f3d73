// Connections of TCP over `lo` of a network namespace made by the test: both ends are held, told,
// closed and made again, as a move within which both ends are in the capsule does it.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <rapidcheck/gtest.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "base/io.h"
#include "sockets/held_sockets.h"
#include "sockets/restored_sockets.h"
#include "sockets/tcp_state.h"
#include "sys/namespaces.h"
#include "sys/netlink.h"
#include "sys/socket_options.h"
#include "sys/tcp_repair.h"

namespace godwit::sockets {
namespace {

constexpr int patience_ms = 60'000;

// A process that does nothing in a network of its own.
class Network {
 public:
  Network() {
    int pipe[2];
    if (::pipe(pipe) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const bool made = ::unshare(CLONE_NEWNET) == 0;
      (void)!::write(pipe[1], made ? "y" : "n", 1);
      while (true) ::pause();
    }
    char answer = 'n';
    (void)!::read(pipe[0], &answer, 1);
    ::close(pipe[0]), ::close(pipe[1]);
    if (answer != 'y') return;
    netns_ = sys::open_namespace(pid_, "net").value();
    ready_ = sys::Netlink::open_in(netns_.get()).value().set_up("lo", true).ok();
  }
  ~Network() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  bool ready() const { return ready_; }
  pid_t pid() const { return pid_; }
  UniqueFd socket(int family, int type = SOCK_STREAM, int protocol = 0) const {
    return sys::socket_in_netns(netns_.get(), family, type, protocol).value();
  }

 private:
  pid_t pid_ = -1;
  UniqueFd netns_;
  bool ready_ = false;
};

#define SKIP_WITHOUT_NETWORK(network) \
  if (!(network).ready()) GTEST_SKIP() << "can't make a network namespace"

struct Pair {
  UniqueFd listener, client, server;
};

Pair connected(const Network& network, int family) {
  Pair pair{network.socket(family), network.socket(family), UniqueFd()};
  sockaddr_storage address{};
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET)
    reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  else
    reinterpret_cast<sockaddr_in6&>(address).sin6_addr = in6addr_loopback;
  auto* at = reinterpret_cast<sockaddr*>(&address);
  socklen_t bytes = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  EXPECT_EQ(::bind(pair.listener.get(), at, bytes), 0);
  EXPECT_EQ(::listen(pair.listener.get(), 8), 0);
  EXPECT_EQ(::getsockname(pair.listener.get(), at, &bytes), 0);
  EXPECT_EQ(::connect(pair.client.get(), at, bytes), 0) << std::strerror(errno);
  pair.server.reset(::accept4(pair.listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return pair;
}

std::string text_at(std::uint64_t from, std::size_t bytes) {
  std::string out(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i)
    out[i] = static_cast<char>((from + i) * 2654435761U >> 16);
  return out;
}

// One direction: what was written and read of the stream.
struct Stream {
  std::uint64_t written = 0, read = 0;
  bool ended = false;

  void write(int from, std::size_t bytes) {
    if (ended) return;
    const std::string data = text_at(written, bytes);
    const ssize_t n = ::send(from, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) written += static_cast<std::uint64_t>(n);
  }
  void end(int from) {
    if (!std::exchange(ended, true)) ::shutdown(from, SHUT_WR);
  }
  // Nothing: as it should be.
  std::string read_up_to(int to, std::size_t bytes) {
    std::string data(bytes, '\0');
    const ssize_t n = ::recv(to, data.data(), data.size(), MSG_DONTWAIT);
    if (n <= 0) return "";
    data.resize(static_cast<std::size_t>(n));
    if (data != text_at(read, data.size())) return fmt::format("bytes from {} are wrong", read);
    read += data.size();
    return "";
  }
  std::string read_all(int to) {
    while (true) {
      pollfd asked{to, POLLIN, 0};
      if (read == written && !ended) return "";
      if (::poll(&asked, 1, patience_ms) != 1) return fmt::format("nothing after {} bytes", read);
      char next;
      const ssize_t n = ::recv(to, &next, 1, MSG_PEEK | MSG_DONTWAIT);
      if (n == 0) return read == written && ended ? "" : fmt::format("it ends at {}", read);
      if (n < 0) return fmt::format("recv: {}", std::strerror(errno));
      if (std::string wrong = read_up_to(to, 1 << 16); !wrong.empty()) return wrong;
    }
  }
};

// As the capsule's sockets on their way. The addresses must be free before they are taken again.
Result<void> move(const Network& network, Pair& pair) {
  image::Socket listener, client, server;
  {
    HeldSockets held(network.pid(), [](bool) { return Result<void>(); });
    const int all[] = {pair.listener.get(), pair.client.get(), pair.server.get()};
    std::vector<std::pair<UniqueFd*, image::Socket*>> each = {
        {&pair.listener, &listener}, {&pair.client, &client}, {&pair.server, &server}};
    for (auto& [socket, image] : each) {
      sockaddr_storage name{};
      socklen_t bytes = sizeof name;
      ::getsockname(socket->get(), reinterpret_cast<sockaddr*>(&name), &bytes);
      image->set_local(&name, bytes);
      bytes = sizeof name;
      if (::getpeername(socket->get(), reinterpret_cast<sockaddr*>(&name), &bytes) == 0)
        image->set_peer(&name, bytes);
      image->set_family(name.ss_family), image->set_type(SOCK_STREAM);
      image->set_protocol(IPPROTO_TCP);
      image->set_listening(socket == &pair.listener);
      for (const sys::SocketOption& option : TRY(sys::socket_options(socket->get()))) {
        image::SocketOption& out = *image->add_options();
        out.set_level(static_cast<std::uint32_t>(option.level));
        out.set_name(static_cast<std::uint32_t>(option.name)), out.set_value(option.value);
      }
    }
    // Of connections that were closed before, some still send.
    TRY(held.wait_until_idle(patience_ms * 1000));
    TRY(held.hold(all));
    for (auto& [socket, image] : each) TRY(held.describe(socket->get(), *image));
    held.commit();
    for (auto& [socket, image] : each) socket->reset();
  }
  RestoredSockets restored(network.pid());
  pair.listener = TRY(restored.make(listener));
  pair.client = TRY(restored.make(client));
  pair.server = TRY(restored.make(server));
  return restored.release();
}

TEST(Sockets, AnyConnectionGoesOnWhereItWas) {
  Network network;
  SKIP_WITHOUT_NETWORK(network);
  enum Step { write_out, write_back, read_out, read_back, end_out, end_back, moves, steps };
  const bool held = rc::check("whatever was written, read and ended before", [&] {
    Pair pair = connected(network, *rc::gen::element(AF_INET, AF_INET6));
    Stream out, back;
    // Ends are rarer than what comes before them.
    const auto script = *rc::gen::container<std::vector<std::pair<int, int>>>(
        rc::gen::pair(rc::gen::weightedElement<int>({{8, write_out},
                                                     {8, write_back},
                                                     {4, read_out},
                                                     {4, read_back},
                                                     {1, end_out},
                                                     {1, end_back},
                                                     {2, moves}}),
                      rc::gen::inRange(1, 300'000)));
    auto play = [&](int step, std::size_t bytes) -> std::string {
      if (step == write_out) out.write(pair.client.get(), bytes);
      if (step == write_back) back.write(pair.server.get(), bytes);
      if (step == read_out) return out.read_up_to(pair.server.get(), bytes);
      if (step == read_back) return back.read_up_to(pair.client.get(), bytes);
      if (step == end_out) out.end(pair.client.get());
      if (step == end_back) back.end(pair.server.get());
      // Both ends closed: there is nothing left that could move.
      if (step == moves && !(out.ended && back.ended))
        if (Result<void> moved = move(network, pair); !moved.ok()) {
          ADD_FAILURE() << moved.error().what();
          return moved.error().what();
        }
      return "";
    };
    for (const auto& [step, bytes] : script) {
      const std::string wrong = play(step, static_cast<std::size_t>(bytes));
      if (!wrong.empty()) RC_FAIL(wrong);
    }
    for (const std::string& wrong :
         {play(moves, 0), out.read_all(pair.server.get()), back.read_all(pair.client.get())})
      if (!wrong.empty()) RC_FAIL(wrong);
  });
  EXPECT_TRUE(held);
}

// What was under way, and what comes after it.
void expect_flows(Stream& out, const Pair& pair) {
  EXPECT_EQ(out.read_all(pair.server.get()), "");
  out.write(pair.client.get(), 1000);
  EXPECT_EQ(out.read_all(pair.server.get()), "");
}

TEST(Sockets, LetGoTheyAreAsBefore) {
  Network network;
  SKIP_WITHOUT_NETWORK(network);
  Pair pair = connected(network, AF_INET);
  Stream out;
  out.write(pair.client.get(), 100'000);
  bool gate_open = true;
  const auto options = [&] {
    std::vector<std::string> values;
    for (int socket : {pair.listener.get(), pair.client.get(), pair.server.get()}) {
      const std::vector<sys::SocketOption> all = sys::socket_options(socket).value();
      for (const sys::SocketOption& option : all) values.push_back(option.value);
    }
    return values;
  };
  const auto before = options();
  {
    HeldSockets held(network.pid(), [&](bool open) {
      gate_open = open;
      return Result<void>();
    });
    const int all[] = {pair.listener.get(), pair.client.get(), pair.server.get()};
    Result<void> done = held.hold(all);
    ASSERT_TRUE(done.ok()) << done.error().what();
    EXPECT_FALSE(gate_open);
    EXPECT_TRUE(*sys::in_tcp_repair(pair.client.get()));
  }
  EXPECT_TRUE(gate_open);
  EXPECT_EQ(options(), before);
  expect_flows(out, pair);
}

TEST(Sockets, WhatADeadWorkerHeldIsLetGo) {
  Network network;
  SKIP_WITHOUT_NETWORK(network);
  Pair pair = connected(network, AF_INET);
  Stream out;
  out.write(pair.client.get(), 100'000);
  const int all[] = {pair.listener.get(), pair.client.get(), pair.server.get()};
  {
    HeldSockets held(network.pid(), [](bool) { return Result<void>(); });
    ASSERT_TRUE(held.hold(all).ok());
    held.commit();  // As death: nothing is undone.
  }
  for (int socket : all) EXPECT_TRUE(let_go(socket).ok());
  EXPECT_FALSE(*sys::in_tcp_repair(pair.client.get()));
  expect_flows(out, pair);
}

TEST(Sockets, WhoWaitsToBeAcceptedIsWaitedFor) {
  Network network;
  SKIP_WITHOUT_NETWORK(network);
  Pair pair = connected(network, AF_INET);
  UniqueFd another = network.socket(AF_INET);
  sockaddr_in address{};
  socklen_t bytes = sizeof address;
  auto* at = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::getsockname(pair.listener.get(), at, &bytes), 0);
  ASSERT_EQ(::connect(another.get(), at, bytes), 0);
  HeldSockets held(network.pid(), [](bool) { return Result<void>(); });
  const int all[] = {pair.listener.get(), pair.client.get(), pair.server.get(), another.get()};
  Result<void> done = held.hold(all);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code(), Errc::busy) << done.error().what();
  EXPECT_FALSE(*sys::in_tcp_repair(pair.client.get()));
  UniqueFd accepted(::accept4(pair.listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(accepted.valid());
  done = held.hold(all);
  EXPECT_TRUE(done.ok()) << done.error().what();
}

TEST(Sockets, WhatCannotMoveIsNamed) {
  Network network;
  SKIP_WITHOUT_NETWORK(network);
  EXPECT_EQ(*reason_against(network.socket(AF_INET).get()), "");
  EXPECT_EQ(*reason_against(network.socket(AF_INET6, SOCK_DGRAM).get()), "");
  EXPECT_NE(*reason_against(network.socket(AF_PACKET, SOCK_RAW).get()), "");
  Pair filtered = connected(network, AF_INET);
  ASSERT_TRUE(sys::drop_resets(filtered.client.get()).ok());
  EXPECT_NE(reason_against(filtered.client.get())->find("filter"), std::string::npos);
  Pair over = connected(network, AF_INET);
  over.server.reset();
  char c;
  EXPECT_EQ(::recv(over.client.get(), &c, 1, 0), 0);
  ::shutdown(over.client.get(), SHUT_RDWR);
  pollfd asked{over.client.get(), 0, 0};
  ASSERT_EQ(::poll(&asked, 1, patience_ms), 1);  // POLLHUP: both are over.
  EXPECT_NE(reason_against(over.client.get())->find("ended"), std::string::npos);
}

}  // namespace
}  // namespace godwit::sockets

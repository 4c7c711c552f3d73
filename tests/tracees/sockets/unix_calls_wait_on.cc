// Threads that wait in Unix sockets: for a message, for a client, for room in a backlog, for room
// in a queue. And timeouts of sockets: no EINTR, none that is early.
#include <sys/time.h>

#include "calls.h"
#include "unix.h"
using namespace tracee;

namespace {

// Begins anew as often as the program is moved: it may be late, but not early.
void wait_for_timeout(int fd, int option, long expected, const std::function<long()>& call,
                      const std::atomic<bool>& stop) {
  const timeval limit = {0, 700'000};
  need(setsockopt(fd, SOL_SOCKET, option, &limit, sizeof limit) == 0, "setsockopt");
  while (!stop) {
    const int64_t start = now_us();
    same("result of a call with a timeout", expected, call());
    const int64_t took = now_us() - start;
    check(took >= 690'000, "a timeout of 0.7 s after %lld us", static_cast<long long>(took));
  }
}

}  // namespace

int main() {
  const std::string own = "@godwit-waits-" + std::to_string(getpid());
  int message[2], room[2], quiet[2], full[2];
  for (auto* pair : {&message, &room, &quiet, &full})
    need(socketpair(AF_UNIX, pair == &message ? SOCK_DGRAM : SOCK_STREAM, 0, *pair) == 0,
         "socketpair");
  const int listener = unix_listener(SOCK_STREAM, own),
            busy = unix_listener(SOCK_STREAM, own + "b", 0);
  const int first = unix_socket(SOCK_STREAM), second = unix_socket(SOCK_STREAM);
  need(connect_to(first, own + "b") == 0, "connect");
  const size_t filled = fill(room[0]);
  fill(full[0]);

  char c = 0;
  int accepted = -1;
  ssize_t received = -1, sent = -1;
  int connected = -1;
  std::atomic<int> waiting{0};
  auto waits = [&](long number, const std::function<void()>& call) {
    std::atomic<pid_t> tid{0};
    std::thread thread([&tid, call] {
      tid = gettid_now();
      call();
    });
    need(eventually([&] { return tid != 0 && blocked_in(tid) == number; }), "call %ld", number);
    ++waiting;
    return thread;
  };
  std::vector<std::thread> threads;
  threads.push_back(waits(SYS_recvfrom, [&] { received = recv(message[1], &c, 1, 0); }));
  threads.push_back(waits(SYS_accept, [&] { accepted = accept(listener, nullptr, nullptr); }));
  threads.push_back(waits(SYS_connect, [&] { connected = connect_to(second, own + "b"); }));
  threads.push_back(waits(SYS_sendto, [&] { sent = send(room[0], "x", 1, 0); }));
  std::atomic<bool> stop{false};
  threads.emplace_back([&] {
    wait_for_timeout(
        quiet[0], SO_RCVTIMEO, -EAGAIN, [&] { return sys_result(recv(quiet[0], &c, 1, 0)); }, stop);
  });
  threads.emplace_back([&] {
    wait_for_timeout(
        full[0], SO_SNDTIMEO, -EAGAIN, [&] { return sys_result(send(full[0], "x", 1, 0)); }, stop);
  });

  ready();
  wait_moved();

  stop = true;
  check(received == -1 && accepted == -1 && connected == -1 && sent == -1,
        "somebody didn't wait: %zd %d %d %zd", received, accepted, connected, sent);
  check(send(message[0], "m", 1, 0) == 1, "send: errno %d", errno);
  const int client = unix_socket(SOCK_STREAM);
  check(connect_to(client, own) == 0, "connect: errno %d", errno);
  const int served = accept(busy, nullptr, nullptr);
  passes(first, served, "the first");
  const int next = accept(busy, nullptr, nullptr);
  same("what fills a queue", filled, read_pieces(room[1], filled));
  for (std::thread& thread : threads) thread.join();
  same("recv", 1, received);
  check(accepted >= 0 && sent == 1 && connected == 0, "accept %d, send %zd, connect %d", accepted,
        sent, connected);
  passes(client, accepted, "accepted");
  passes(second, next, "the second");
  return ok();
}

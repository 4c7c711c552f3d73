// One loop, one poll(2). Nothing here waits for a client or for the program: whatever can't go on
// is left where it is (in a pipe, in the ring, in a client's socket) and looked at again when poll
// says so. There are no queues: what a client is owed follows from counters, so a slow client costs
// nothing.
//
// Signals from inside can't end PID 1: it has no handlers, and the kernel drops what a namespace's
// init has no handler for. SIGCHLD is read from a signalfd.
#include "capsule/init/server.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "capsule/init/requests.h"

namespace godwit::init {
namespace {

using capsule::clients_max;
using capsule::Message;

constexpr int packets_a_turn = 32;  // So that no client starves the others.

Packet answers[clients_max];
Packet request;
Packet answer;

class Server {
 public:
  Server(int listener, const TreeEntrance& tree) : listener_(listener), state_(tree) {}

  [[noreturn]] void run() {
    if (prepare().failed()) ::_exit(1);
    while (true) turn();
  }

 private:
  Fail prepare() {
    for (std::size_t i = 0; i < clients_max; ++i) state_.clients[i].answer = &answers[i];
    CHECK(state_.relay.map_memory());
    CHECK(read_clock_base(state_.clock_base));
    sigset_t child;  // Blocked by the starter.
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    signals_ = ::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    return signals_ < 0 ? fail("signalfd") : ok();
  }

  void turn() {
    pollfd set[2 + 3 + clients_max];
    int count = 0;
    int timeout_ms = -1;
    set[count++] = {signals_, POLLIN, 0};
    set[count++] = {listener_, POLLIN, 0};
    count += state_.relay.poll_set(set + count, timeout_ms);
    for (Connection& client : state_.clients) {
      if (client.fd < 0) continue;
      short events = client.answer_waits ? 0 : POLLIN;
      if (client.full || client.answer_waits) events |= POLLOUT;
      set[count++] = {client.fd, events, 0};
    }
    // Failing (EINTR, ENOMEM) is no reason to stop: each step below finds out for itself what can
    // be done.
    ::poll(set, static_cast<nfds_t>(count), timeout_ms);

    if (set[0].revents != 0) reap();
    if (set[1].revents != 0) accept_client();
    for (Connection& client : state_.clients)
      if (client.fd >= 0) read_client(client);
    // What fails here (it can't, short of bugs) stops the relay; `status` shows it standing.
    if (state_.relay.work().failed()) state_.relay.stop();
    for (Connection& client : state_.clients)
      if (client.fd >= 0) tell_client(client);
    if (state_.shutdown) ::_exit(0);  // The kernel kills everything else in the namespace.
  }

  void reap() {
    signalfd_siginfo info[16];
    while (::read(signals_, info, sizeof(info)) > 0) {
    }
    int status = 0;
    while (true) {
      pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
      if (pid <= 0) return;
      if (pid == state_.relay.main_pid()) state_.relay.main_exited(status);
    }
  }

  void accept_client() {
    int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    ucred peer{};
    socklen_t length = sizeof(peer);
    bool root = ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == 0;
    for (Connection& client : state_.clients) {
      if (root && client.fd < 0) {
        client.open(fd);
        return;
      }
    }
    ::close(fd);
  }

  void read_client(Connection& client) {
    if (client.answer_waits && !send_answer(client, *client.answer)) return;
    for (int i = 0; i < packets_a_turn && client.fd >= 0 && !client.answer_waits; ++i) {
      Connection::Received received = client.receive(request);
      if (received == Connection::Received::nothing) return;
      if (received == Connection::Received::gone) {
        client.close();
        return;
      }
      if (!state_.handle(client, request, answer)) continue;
      // The answer's place is taken only if it can't be sent at once.
      if (!send_answer(client, answer) && client.fd >= 0) {
        *client.answer = answer;
        answer.fd_count = 0;
      }
    }
    request.clear();
  }

  bool send_answer(Connection& client, Packet& packet) {
    iovec payload{packet.payload, packet.header.length};
    Connection::Sent sent = client.send(packet.header, payload, packet.fds, packet.fd_count);
    client.answer_waits = sent == Connection::Sent::full;
    if (client.answer_waits) return false;
    packet.clear();
    if (sent == Connection::Sent::gone) client.close();
    return sent == Connection::Sent::done;
  }

  // Everything that it is owed by now, until its socket is full.
  void tell_client(Connection& client) {
    client.full = false;
    bool more = true;
    while (more && client.fd >= 0 && !client.full) {
      Connection::Sent sent = Connection::Sent::done;
      more = tell_one(client, sent);
      if (sent == Connection::Sent::full) client.full = true;
      if (sent == Connection::Sent::gone) client.close();
    }
  }

  // False: nothing is owed.
  bool tell_one(Connection& client, Connection::Sent& sent) {
    Relay& relay = state_.relay;
    if (client.detached_due) {
      sent = client.event(Message::detached, 0, 0, {});
      client.detached_due = sent != Connection::Sent::done;
      return true;
    }
    if (client.attached && client.ack_told < relay.input_written()) {
      std::uint64_t written = relay.input_written();
      sent = client.event(Message::stdin_ack, written, 0, {});
      if (sent == Connection::Sent::done) client.ack_told = written;
      return true;
    }
    if (client.attached && state_.relay.resend_due()) {
      sent = client.event(Message::stdin_resend, relay.input_next(), 0, {});
      if (sent == Connection::Sent::done) relay.resend_told();
      return true;
    }
    if (client.attached && client.out_next < relay.output().end()) {
      int stream = 1;
      iovec piece = relay.output_at(client.out_next, stream);
      sent = client.event(Message::out, client.out_next, static_cast<std::uint64_t>(stream), piece);
      if (sent == Connection::Sent::done) client.out_next += piece.iov_len;
      return true;
    }
    bool exit_due = client.attached ? relay.exit_drained() && client.out_next >= relay.exit_at()
                                    : client.watching && relay.exited();
    if (!exit_due || client.exit_told) return false;
    sent = client.event(Message::exited, static_cast<std::uint64_t>(relay.main_pid()),
                        static_cast<std::uint64_t>(relay.wait_status()), {});
    client.exit_told = sent == Connection::Sent::done;
    return true;
  }

  int listener_;
  int signals_ = -1;
  State state_;
};

}  // namespace

void serve(int listener, const TreeEntrance& tree) {
  static Server server(listener, tree);
  server.run();
}

}  // namespace godwit::init

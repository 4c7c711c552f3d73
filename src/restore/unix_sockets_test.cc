// Sockets that only the image has: a program finds them at numbers that it never opened itself.
#include "restore/unix_sockets.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <random>

#include "restore/moved_program.h"

namespace godwit::restore {
namespace {

constexpr int first_fd = 100;

class UnixSocketsTest : public testing::Test {
 protected:
  void SetUp() override {
    static const std::string why = why_no_shells();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

image::PeerCredentials program_as(uid_t uid, gid_t gid) {
  image::PeerCredentials who;
  who.set_pid(program_pid), who.set_uid(uid), who.set_gid(gid);
  return who;
}

std::string abstract_name(const std::string& text) {
  const sa_family_t family = AF_UNIX;
  return std::string(reinterpret_cast<const char*>(&family), sizeof family) + '\0' + text;
}

// At the next number. Stays valid until another is added.
image::Socket& add_socket(image::Capsule& image, int type) {
  image::Process& process = *image.mutable_processes(0);
  image::Socket& socket = *image.add_sockets();
  socket.set_id(static_cast<std::uint32_t>(image.sockets_size()));
  socket.set_family(AF_UNIX), socket.set_type(static_cast<std::uint32_t>(type));
  socket.set_mode(0777);
  image::OpenFile& file = *image.add_files();
  file.set_id(static_cast<std::uint32_t>(image.files_size()));
  file.set_kind(image::OpenFile::SOCKET);
  file.set_flags(O_RDWR);
  file.set_socket(socket.id());
  image::Fd& fd = *process.add_fds();
  fd.set_fd(first_fd + image.sockets_size() - 1);
  fd.set_file(file.id());
  return socket;
}

void add_pair(image::Capsule& image, int type, const image::PeerCredentials& first_is,
              const image::PeerCredentials& second_is) {
  add_socket(image, type);
  image::Socket& second = add_socket(image, type);
  image::Socket& first = *image.mutable_sockets(image.sockets_size() - 2);
  first.mutable_unix_end()->set_peer(second.id());
  second.mutable_unix_end()->set_peer(first.id());
  *first.mutable_unix_end()->mutable_credentials() = first_is;
  *second.mutable_unix_end()->mutable_credentials() = second_is;
}

bool peer_is(int fd, pid_t pid, uid_t uid, gid_t gid) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.pid == pid &&
         peer.uid == uid && peer.gid == gid;
}

using Messages = std::vector<std::string>;

Messages random_messages(std::mt19937& random, bool stream) {
  Messages messages(random() % 9);
  for (std::string& message : messages) {
    message.resize((stream ? 1 : 0) + random() % 70'000);
    for (char& c : message) c = static_cast<char>(random());
  }
  return messages;
}

TEST_F(UnixSocketsTest, QueuesComeWithTheirBorders) {
  std::mt19937 random(2);
  for (int round = 0; round < 9; ++round) {
    const int type = std::array{SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}[round % 3];
    const Messages messages = random_messages(random, type == SOCK_STREAM);
    auto program = [&] {
      be_moved();
      std::string came(100'000, '\0'), all;
      for (const std::string& message : messages) all += message;
      if (type == SOCK_STREAM) {
        came.resize(all.size());
        CHECK_HERE(all.empty() || ::recv(first_fd, came.data(), came.size(), MSG_WAITALL) ==
                                      static_cast<ssize_t>(all.size()));
        CHECK_HERE(came == all);
      } else {
        for (const std::string& message : messages) {
          const ssize_t n = ::recv(first_fd, came.data(), came.size(), MSG_DONTWAIT);
          CHECK_HERE(n == static_cast<ssize_t>(message.size()));
          CHECK_HERE(came.substr(0, message.size()) == message);
        }
      }
      char back[10];
      CHECK_HERE(::recv(first_fd, back, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
      CHECK_HERE(::send(first_fd, "back", 4, 0) == 4);
      CHECK_HERE(::recv(first_fd + 1, back, sizeof back, 0) == 4);
      return 0;
    };
    Result<Moved> moved = move_program(program, [&](image::Capsule& image) {
      add_pair(image, type, program_as(0, 0), program_as(0, 0));
      for (const std::string& message : messages)
        image.mutable_sockets(0)->add_queue()->set_data(message);
    });
    ASSERT_TRUE(moved.ok()) << moved.error().what();
    ASSERT_TRUE(moved->target->write_byte('g').ok());
    finishes_well(*moved);
  }
}

TEST_F(UnixSocketsTest, EachEndIsToldWhoTheOtherWas) {
  auto program = [] {
    be_moved();
    CHECK_HERE(peer_is(first_fd, program_pid, 1000, 1001));
    CHECK_HERE(peer_is(first_fd + 1, program_pid, 0, 7));
    sockaddr_un name{};
    socklen_t bytes = sizeof name;
    CHECK_HERE(::getsockname(first_fd, reinterpret_cast<sockaddr*>(&name), &bytes) == 0);
    CHECK_HERE(std::string(reinterpret_cast<char*>(&name), bytes) == abstract_name("served"));
    // The name itself is free.
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK_HERE(::bind(fd, reinterpret_cast<sockaddr*>(&name), bytes) == 0);
    CHECK_HERE(::send(first_fd, "x", 1, 0) == 1);
    return 0;
  };
  Result<Moved> moved = move_program(program, [](image::Capsule& image) {
    add_pair(image, SOCK_STREAM, program_as(1000, 1001), program_as(0, 7));
    image.mutable_sockets(0)->set_local(abstract_name("served"));
  });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
}

TEST_F(UnixSocketsTest, WhoWaitsInABacklogIsAcceptedInItsTurn) {
  auto program = [] {
    be_moved();
    for (int i : {2, 1}) {  // As their places are.
      const int served = ::accept(first_fd, nullptr, nullptr);
      CHECK_HERE(served >= 0);
      CHECK_HERE(peer_is(served, program_pid, 0, 0));
      char c = 0;
      CHECK_HERE(::send(first_fd + i, "x", 1, 0) == 1 && ::recv(served, &c, 1, 0) == 1);
      CHECK_HERE(peer_is(first_fd + i, program_pid, 33, 34));
    }
    return 0;
  };
  Result<Moved> moved = move_program(program, [](image::Capsule& image) {
    image::Socket& listener = add_socket(image, SOCK_STREAM);
    listener.set_local(abstract_name("backlog"));
    listener.set_listening(true), listener.set_backlog(5);
    listener.mutable_unix_end()->set_holds_name(true);
    *listener.mutable_unix_end()->mutable_credentials() = program_as(33, 34);
    for (std::uint32_t place : {1, 0}) {
      image::Socket& client = add_socket(image, SOCK_STREAM);
      client.mutable_unix_end()->set_accepted_of(1);
      client.mutable_unix_end()->set_backlog_place(place);
    }
  });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
}

TEST_F(UnixSocketsTest, AMakerThatHasEndedIsNoted) {
  auto program = [] {
    be_moved();
    CHECK_HERE(peer_is(first_fd, program_pid, 5, 6));
    return 0;
  };
  Result<Moved> moved = move_program(program, [](image::Capsule& image) {
    image::PeerCredentials gone = program_as(5, 6);
    gone.set_pid(0);
    add_pair(image, SOCK_DGRAM, gone, gone);
  });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  bool noted = false;
  for (const std::string& note : moved->restorer->notes())
    noted = noted || note.find("SO_PEERCRED") != std::string::npos;
  EXPECT_TRUE(noted);
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
}

TEST_F(UnixSocketsTest, ReceiversThatAreNotHereRefuseAndAreNoted) {
  const std::string nobody = path_name("/tmp/godwit-nobody-receives-here");
  auto program = [&] {
    be_moved();
    sockaddr_un name{};
    socklen_t bytes = sizeof name;
    CHECK_HERE(::getpeername(first_fd, reinterpret_cast<sockaddr*>(&name), &bytes) == 0);
    CHECK_HERE(std::string(reinterpret_cast<char*>(&name), bytes) == nobody);
    CHECK_HERE(::send(first_fd, "x", 1, 0) == -1 && errno == ECONNREFUSED);
    CHECK_HERE(::access("/tmp/godwit-nobody-receives-here", F_OK) != 0);
    return 0;
  };
  Result<Moved> moved = move_program(program, [&](image::Capsule& image) {
    image::Socket& sender = add_socket(image, SOCK_DGRAM);
    sender.set_peer(nobody);
    sender.mutable_unix_end()->set_peer_outside(true);
  });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  bool noted = false;
  for (const std::string& note : moved->restorer->notes())
    noted = noted || note.find("godwit-nobody-receives-here") != std::string::npos;
  EXPECT_TRUE(noted);
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
}

TEST_F(UnixSocketsTest, NothingIsLeftInTheDirectoriesOfTheCapsule) {
  auto program = [] {
    be_moved();
    CHECK_HERE(::system("ls -d /tmp/.godwit-names-* 2>/dev/null | grep -q .") != 0);
    sockaddr_un name{};
    socklen_t bytes = sizeof name;
    CHECK_HERE(::getsockname(first_fd, reinterpret_cast<sockaddr*>(&name), &bytes) == 0);
    CHECK_HERE(std::string(reinterpret_cast<char*>(&name), bytes) ==
               path_name("../some/../where/else/name"));
    return 0;
  };
  Result<Moved> moved = move_program(program, [&](image::Capsule& image) {
    image::Socket& socket = add_socket(image, SOCK_DGRAM);
    socket.set_local(path_name("../some/../where/else/name"));
    socket.mutable_unix_end()->set_holds_name(true);
  });
  ASSERT_TRUE(moved.ok()) << moved.error().what();
  ASSERT_TRUE(moved->target->write_byte('g').ok());
  finishes_well(*moved);
}

}  // namespace
}  // namespace godwit::restore

// Sockets of this very process, described as if they were a program's.
#include "capture/describe_unix.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <random>

#include "base/clock.h"
#include "base/io.h"

namespace godwit::capture {
namespace {

constexpr std::uint32_t some_file = 77;

struct Ends {
  explicit Ends(int type) {
    int both[2];
    EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, both), 0);
    first.reset(both[0]), second.reset(both[1]);
  }
  UniqueFd first, second;
};

// A name in the abstract namespace that is only this test's.
std::string abstract_name(const std::string& what) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string text = fmt::format("godwit-test-{}-{}", ::getpid(), what);
  std::memcpy(name.sun_path + 1, text.data(), text.size());
  return std::string(reinterpret_cast<const char*>(&name),
                     offsetof(sockaddr_un, sun_path) + 1 + text.size());
}

UniqueFd bound(int type, const std::string& name) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(name.data()),
                   static_cast<socklen_t>(name.size())),
            0);
  return fd;
}

void connect_to(const UniqueFd& fd, const std::string& name) {
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(name.data()),
                      static_cast<socklen_t>(name.size())),
            0);
}

// In the order of `fds`.
Result<std::vector<image::Socket>> describe(const std::vector<const UniqueFd*>& fds,
                                            std::vector<UniqueFd>* carried = nullptr) {
  SocketTable table;
  std::vector<std::uint32_t> ids;
  for (const UniqueFd* fd : fds) {
    struct stat st {};
    if (::fstat(fd->get(), &st) != 0) return os_error("fstat");
    ids.push_back(TRY(table.add(TRY(duplicate(fd->get())), st, "a socket")));
  }
  Inside inside;
  inside.describe = [carried](UniqueFd fd) -> Result<std::uint32_t> {
    if (carried != nullptr) carried->push_back(std::move(fd));
    return some_file;
  };
  inside.pid = [](pid_t pid) { return pid == ::getpid() ? 50 : 0; };
  image::Capsule capsule;
  TRY(table.describe(nullptr, inside, capsule));
  std::map<std::uint32_t, const image::Socket*> by_id;
  for (const image::Socket& socket : capsule.sockets()) by_id[socket.id()] = &socket;
  std::vector<image::Socket> out;
  for (std::uint32_t id : ids) out.push_back(*by_id.at(id));
  return out;
}

#define ASSERT_SOCKETS(sockets) ASSERT_TRUE(sockets.ok()) << sockets.error().what()

void send_with_file(int fd, const std::string& data) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec vector{const_cast<char*>(data.data()), data.size()};
  msghdr header{};
  header.msg_iov = &vector, header.msg_iovlen = 1;
  header.msg_control = control, header.msg_controllen = sizeof control;
  cmsghdr* part = CMSG_FIRSTHDR(&header);
  part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS,
  part->cmsg_len = CMSG_LEN(sizeof(int));
  const int carried = STDERR_FILENO;
  std::memcpy(CMSG_DATA(part), &carried, sizeof carried);
  ASSERT_EQ(::sendmsg(fd, &header, 0), static_cast<ssize_t>(data.size()));
}

int peek_offset(const UniqueFd& fd) {
  int offset = -2;
  socklen_t bytes = sizeof offset;
  EXPECT_EQ(::getsockopt(fd.get(), SOL_SOCKET, SO_PEEK_OFF, &offset, &bytes), 0);
  return offset;
}

struct Piece {
  std::string data;
  bool with_file;
  bool operator==(const Piece&) const = default;
};

std::vector<Piece> pieces_of(const image::Socket& socket) {
  std::vector<Piece> pieces;
  for (const image::Message& message : socket.queue())
    pieces.push_back({message.data(), message.files_size() == 1 && message.files(0) == some_file});
  return pieces;
}

// What was sent, and in a stream what is in one piece there.
std::vector<Piece> send_at_random(std::mt19937& random, int fd, bool stream) {
  std::vector<Piece> sent;
  const auto count = random() % 8;
  for (std::size_t i = 0; i < count; ++i) {
    Piece piece{std::string((stream ? 1 : 0) + random() % 300, '\0'), random() % 3 == 0};
    for (char& c : piece.data) c = static_cast<char>(random());
    if (piece.with_file)
      send_with_file(fd, piece.data);
    else
      EXPECT_EQ(::send(fd, piece.data.data(), piece.data.size(), 0),
                static_cast<ssize_t>(piece.data.size()));
    if (stream && !piece.with_file && !sent.empty() && !sent.back().with_file)
      sent.back().data += piece.data;
    else
      sent.push_back(std::move(piece));
  }
  return sent;
}

TEST(DescribeUnix, QueuesAreToldWithTheirBordersAndStayAsTheyAre) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const int type = std::array{SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}[round % 3];
    Ends ends(type);
    const std::vector<Piece> sent = send_at_random(random, ends.first.get(), type == SOCK_STREAM);
    Result<std::vector<image::Socket>> sockets = describe({&ends.first, &ends.second});
    ASSERT_SOCKETS(sockets);
    EXPECT_EQ(pieces_of((*sockets)[1]), sent) << "round " << round;
    EXPECT_EQ((*sockets)[0].queue_size(), 0);
    EXPECT_EQ(peek_offset(ends.second), -1);
    std::string all;
    for (const Piece& piece : sent) all += piece.data;
    std::string came, buffer(4096, '\0');
    for (ssize_t n;
         (n = ::recv(ends.second.get(), buffer.data(), buffer.size(), MSG_DONTWAIT)) >= 0;)
      came.append(buffer, 0, static_cast<std::size_t>(n));
    EXPECT_EQ(came, all) << "round " << round;
  }
}

TEST(DescribeUnix, AnOffsetOfTheProgramsOwnIsPutBack) {
  for (int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
    Ends ends(type);
    ASSERT_EQ(::send(ends.first.get(), "one", 3, 0), 3);
    ASSERT_EQ(::send(ends.first.get(), "two", 3, 0), 3);
    const int offset = 3;
    ASSERT_EQ(::setsockopt(ends.second.get(), SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset), 0);
    Result<std::vector<image::Socket>> sockets = describe({&ends.first, &ends.second});
    ASSERT_SOCKETS(sockets);
    std::string all;
    for (const Piece& piece : pieces_of((*sockets)[1])) all += piece.data;
    EXPECT_EQ(all, "onetwo");
    EXPECT_EQ(peek_offset(ends.second), offset);
  }
}

TEST(DescribeUnix, PeersFindEachOther) {
  Ends ends(SOCK_STREAM);
  Result<std::vector<image::Socket>> sockets = describe({&ends.first, &ends.second});
  ASSERT_SOCKETS(sockets);
  EXPECT_EQ((*sockets)[0].unix_end().peer(), (*sockets)[1].id());
  EXPECT_EQ((*sockets)[1].unix_end().peer(), (*sockets)[0].id());
  EXPECT_EQ((*sockets)[0].unix_end().credentials().pid(), 50);
  EXPECT_EQ((*sockets)[0].unix_end().credentials().uid(), ::geteuid());
}

TEST(DescribeUnix, APeerOutsideIsRefusedByName) {
  Ends ends(SOCK_SEQPACKET);
  Result<std::vector<image::Socket>> sockets = describe({&ends.first});
  ASSERT_FALSE(sockets.ok());
  EXPECT_EQ(sockets.error().code(), Errc::refused);
  EXPECT_NE(sockets.error().what().find("outside of the capsule"), std::string::npos)
      << sockets.error().what();
}

TEST(DescribeUnix, WhoSendsToAPathOutsideIsConnectedByIt) {
  char directory[] = "/tmp/godwit-test-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string path = fmt::format("{}/log", directory);
  std::memcpy(name.sun_path, path.data(), path.size());
  const std::string bytes(reinterpret_cast<const char*>(&name), sizeof name);
  const UniqueFd outside = bound(SOCK_DGRAM, bytes);
  UniqueFd sender(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  connect_to(sender, bytes);
  Result<std::vector<image::Socket>> sockets = describe({&sender});
  ::unlink(path.c_str()), ::rmdir(directory);
  ASSERT_SOCKETS(sockets);
  EXPECT_TRUE((*sockets)[0].unix_end().peer_outside());
  EXPECT_EQ((*sockets)[0].unix_end().peer(), 0u);
}

TEST(DescribeUnix, APeerThatIsGoneHasLeftWhatItSent) {
  for (int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    Ends left(type), reset(type);
    ASSERT_EQ(::send(left.first.get(), "left", 4, 0), 4);
    left.first.reset();
    ASSERT_EQ(::send(reset.second.get(), "unread", 6, 0), 6);
    reset.first.reset();
    Result<std::vector<image::Socket>> sockets = describe({&left.second, &reset.second});
    ASSERT_SOCKETS(sockets);
    EXPECT_TRUE((*sockets)[0].unix_end().peer_gone());
    EXPECT_FALSE((*sockets)[0].unix_end().reset());
    EXPECT_EQ(pieces_of((*sockets)[0]), (std::vector<Piece>{{"left", false}}));
    EXPECT_TRUE((*sockets)[1].unix_end().reset());
    char c = 0;
    EXPECT_EQ(::recv(reset.second.get(), &c, 1, 0), -1);
    EXPECT_EQ(errno, ECONNRESET) << "a look has taken the error";
  }
}

TEST(DescribeUnix, WhoWaitsInABacklogHasItsPlaceUnlessItHasSentSomething) {
  const std::string name = abstract_name("backlog");
  const UniqueFd listener = bound(SOCK_STREAM, name);
  ASSERT_EQ(::listen(listener.get(), 7), 0);
  UniqueFd first(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)),
      second(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  connect_to(first, name), connect_to(second, name);
  Result<std::vector<image::Socket>> sockets = describe({&second, &listener, &first});
  ASSERT_SOCKETS(sockets);
  EXPECT_EQ((*sockets)[1].backlog(), 7u);
  EXPECT_EQ((*sockets)[0].unix_end().accepted_of(), (*sockets)[1].id());
  EXPECT_EQ((*sockets)[2].unix_end().accepted_of(), (*sockets)[1].id());
  EXPECT_EQ((*sockets)[2].unix_end().backlog_place(), 0u);
  EXPECT_EQ((*sockets)[0].unix_end().backlog_place(), 1u);
  ASSERT_EQ(::send(first.get(), "x", 1, 0), 1);
  sockets = describe({&second, &listener, &first});
  ASSERT_FALSE(sockets.ok());
  EXPECT_EQ(sockets.error().code(), Errc::busy) << sockets.error().what();
}

TEST(DescribeUnix, AnAbstractNameIsHeldByTheOneThatWasBoundToIt) {
  const std::string name = abstract_name("held");
  UniqueFd listener = bound(SOCK_STREAM, name);
  ASSERT_EQ(::listen(listener.get(), 7), 0);
  UniqueFd client = bound(SOCK_STREAM, abstract_name("client"));
  connect_to(client, name);
  const UniqueFd server(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  for (bool listens : {true, false}) {
    if (!listens) listener.reset();
    Result<std::vector<image::Socket>> sockets =
        listens ? describe({&client, &server, &listener}) : describe({&client, &server});
    ASSERT_SOCKETS(sockets);
    EXPECT_TRUE((*sockets)[0].unix_end().holds_name());
    EXPECT_EQ((*sockets)[1].local(), name);
    EXPECT_FALSE((*sockets)[1].unix_end().holds_name());
  }
}

TEST(DescribeUnix, UrgentDataIsRefusedByName) {
  Ends ends(SOCK_STREAM);
  if (::send(ends.first.get(), "!", 1, MSG_OOB) != 1) GTEST_SKIP() << "no MSG_OOB in this kernel";
  Result<std::vector<image::Socket>> sockets = describe({&ends.first, &ends.second});
  ASSERT_FALSE(sockets.ok());
  EXPECT_NE(sockets.error().what().find("MSG_OOB"), std::string::npos) << sockets.error().what();
}

TEST(DescribeUnix, CredentialsComeWhereTheyWereAskedFor) {
  Ends ends(SOCK_DGRAM);
  const int one = 1;
  ASSERT_EQ(::send(ends.first.get(), "before", 6, 0), 6);
  ASSERT_EQ(::setsockopt(ends.second.get(), SOL_SOCKET, SO_PASSCRED, &one, sizeof one), 0);
  ASSERT_EQ(::send(ends.first.get(), "after", 5, 0), 5);
  Result<std::vector<image::Socket>> sockets = describe({&ends.first, &ends.second});
  ASSERT_SOCKETS(sockets);
  const image::Socket& socket = (*sockets)[1];
  ASSERT_EQ(socket.queue_size(), 2);
  EXPECT_EQ(socket.queue(0).credentials().pid(), 0);
  EXPECT_EQ(socket.queue(1).credentials().pid(), 50);
  EXPECT_EQ(socket.queue(1).credentials().uid(), ::getuid());
}

// What a socket costs in the freeze, apart from its descriptor.
TEST(DescribeUnix, TakesMicroseconds) {
  constexpr int pairs = 200;
  std::vector<Ends> all;
  for (int i = 0; i < pairs; ++i) all.emplace_back(SOCK_STREAM);
  for (bool queued : {false, true}) {
    for (Ends& ends : all) EXPECT_TRUE(!queued || ::send(ends.first.get(), "x", 1, 0) == 1);
    std::vector<const UniqueFd*> fds;
    for (const Ends& ends : all) fds.push_back(&ends.first), fds.push_back(&ends.second);
    const std::int64_t began_ns = monotonic_ns();
    Result<std::vector<image::Socket>> sockets = describe(fds);
    const std::int64_t took_ns = monotonic_ns() - began_ns;
    ASSERT_SOCKETS(sockets);
    printf("a socket %s: %.1f us\n", queued ? "of a pair, one of which has a message" : "without",
           static_cast<double>(took_ns) / 1e3 / (2 * pairs));
  }
}

}  // namespace
}  // namespace godwit::capture

#include "transport/link.h"

#include <google/protobuf/wrappers.pb.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "transport/handshake.h"
#include "transport/socket.h"

namespace godwit::transport {
namespace {

constexpr std::int64_t generous_ms = 20'000;

struct Pair {
  Link source;
  Link target;
};

Pair make_pair_of_links(LinkKind kind = LinkKind::control) {
  Token token = random_token();
  Result<Listener> listener = Listener::open("127.0.0.1", 0, token, {});
  EXPECT_TRUE(listener.ok());
  auto connecting = std::async(std::launch::async, [&] {
    return connect("127.0.0.1", listener->port(), token, kind, 5, {});
  });
  Result<Link> target = listener->accept(generous_ms);
  Result<Link> source = connecting.get();
  EXPECT_TRUE(target.ok()) << target.error().what();
  EXPECT_TRUE(source.ok()) << source.error().what();
  return {std::move(source).value(), std::move(target).value()};
}

google::protobuf::BytesValue text(std::string value) {
  google::protobuf::BytesValue message;
  message.set_value(std::move(value));
  return message;
}

// A plain connection, as a stranger makes it.
UniqueFd stranger_to(std::uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  Result<Address> to = numeric_address("127.0.0.1", port);
  EXPECT_TRUE(to.ok());
  EXPECT_EQ(::connect(fd.get(), to->get(), to->size), 0);
  return fd;
}

bool closed_by_peer(int fd) {
  std::byte byte;
  pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&p, 1, static_cast<int>(generous_ms)) == 1 && ::recv(fd, &byte, 1, 0) <= 0;
}

TEST(Link, CarriesMessagesBothWays) {
  Pair links = make_pair_of_links();
  EXPECT_EQ(links.target.kind(), LinkKind::control);
  EXPECT_EQ(links.target.index(), 5u);
  google::protobuf::BytesValue got;
  ASSERT_TRUE(links.source.send(text("there")).ok());
  ASSERT_TRUE(links.target.receive(got, generous_ms).ok());
  EXPECT_EQ(got.value(), "there");
  ASSERT_TRUE(links.target.send(text("")).ok());
  ASSERT_TRUE(links.source.receive(got, generous_ms).ok());
  EXPECT_EQ(got.value(), "");
}

TEST(Link, CarriesMessagesLargerThanSocketBuffers) {
  Pair links = make_pair_of_links();
  std::string large(40'000'001, 'x');
  large[39'999'999] = 'y';
  auto sending = std::async(std::launch::async, [&] { return links.source.send(text(large)); });
  google::protobuf::BytesValue got;
  Result<void> received = links.target.receive(got, generous_ms);
  ASSERT_TRUE(received.ok()) << received.error().what();
  EXPECT_TRUE(sending.get().ok());
  EXPECT_TRUE(got.value() == large);
}

TEST(Link, DataSocketsAreTuned) {
  Pair links = make_pair_of_links(LinkKind::data);
  for (const Link* link : {&links.source, &links.target}) {
    char congestion[16] = {};
    socklen_t size = sizeof congestion;
    ASSERT_EQ(::getsockopt(link->fd(), IPPROTO_TCP, TCP_CONGESTION, congestion, &size), 0);
    EXPECT_STREQ(congestion, "cubic");
    int no_delay = 0;
    size = sizeof no_delay;
    ASSERT_EQ(::getsockopt(link->fd(), IPPROTO_TCP, TCP_NODELAY, &no_delay, &size), 0);
    EXPECT_EQ(no_delay, 1);
  }
}

TEST(Link, ReceiveWithoutAMessageTimesOutAndStaysUsable) {
  Pair links = make_pair_of_links();
  google::protobuf::BytesValue got;
  Result<void> nothing = links.target.receive(got, 10);
  ASSERT_FALSE(nothing.ok());
  EXPECT_EQ(nothing.error().code(), Errc::timeout);
  ASSERT_TRUE(links.source.send(text("late")).ok());
  EXPECT_TRUE(links.target.receive(got, generous_ms).ok());
}

TEST(Link, HalfAMessageIsALostPeer) {
  Pair links = make_pair_of_links();
  const char half[] = {100, 0, 0, 0, 'a'};
  ASSERT_EQ(::send(links.source.fd(), half, sizeof half, 0), 5);
  google::protobuf::BytesValue got;
  Result<void> result = links.target.receive(got, 50);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code(), Errc::peer_lost);
}

TEST(Link, RefusesOversizedAndUnparsableMessages) {
  {
    Pair links = make_pair_of_links();
    const unsigned char huge[] = {1, 0, 0, 0x10};  // 256 MiB and one byte
    ASSERT_EQ(::send(links.source.fd(), huge, sizeof huge, 0), 4);
    google::protobuf::BytesValue got;
    EXPECT_EQ(links.target.receive(got, generous_ms).error().code(), Errc::invalid);
  }
  Pair links = make_pair_of_links();
  const unsigned char nonsense[] = {2, 0, 0, 0, 0xff, 0xff};
  ASSERT_EQ(::send(links.source.fd(), nonsense, sizeof nonsense, 0), 6);
  google::protobuf::BytesValue got;
  EXPECT_EQ(links.target.receive(got, generous_ms).error().code(), Errc::invalid);
}

TEST(Link, ShutdownWakesBothSides) {
  Pair links = make_pair_of_links();
  auto wait = [](Link& link) {
    return std::async(std::launch::async, [&link] {
      google::protobuf::BytesValue got;
      return link.receive(got, generous_ms).error().code();
    });
  };
  auto here = wait(links.source);
  auto there = wait(links.target);
  links.source.shutdown();
  EXPECT_EQ(here.get(), Errc::peer_lost);
  EXPECT_EQ(there.get(), Errc::peer_lost);
}

TEST(Link, SendToAClosedPeerIsPeerLost) {
  Pair links = make_pair_of_links();
  links.target = Link();
  Result<void> sent;
  for (int i = 0; i < 1000 && sent.ok(); ++i) sent = links.source.send(text("anybody?"));
  ASSERT_FALSE(sent.ok());
  EXPECT_EQ(sent.error().code(), Errc::peer_lost);
}

TEST(Link, AWrongTokenIsRefusedByTheSourceBeforeItProvesAnything) {
  Result<Listener> listener = Listener::open("127.0.0.1", 0, random_token(), {});
  ASSERT_TRUE(listener.ok());
  auto accepting = std::async(std::launch::async, [&] { return listener->accept(500); });
  Result<Link> link = connect("127.0.0.1", listener->port(), random_token(), LinkKind::data, 0, {});
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.error().code(), Errc::permission);
  EXPECT_EQ(accepting.get().error().code(), Errc::timeout);
}

TEST(Listener, AWrongProofIsRefused) {
  Token token = random_token();
  Result<Listener> listener = Listener::open("127.0.0.1", 0, token, {});
  ASSERT_TRUE(listener.ok());
  UniqueFd fd = stranger_to(listener->port());
  auto accepting = std::async(std::launch::async, [&] { return listener->accept(2'000); });
  const Hello hello = make_hello(LinkKind::data, 0, random_nonce());
  ASSERT_TRUE(send_all(fd.get(), hello, Deadline(generous_ms)).ok());
  std::array<std::byte, challenge_bytes> challenge;
  ASSERT_TRUE(receive_all(fd.get(), challenge, Deadline(generous_ms)).ok());
  // Reflecting the target's own code must not do either.
  ASSERT_TRUE(
      send_all(fd.get(), std::span(challenge).subspan(nonce_bytes), Deadline(generous_ms)).ok());
  EXPECT_TRUE(closed_by_peer(fd.get()));
  EXPECT_EQ(accepting.get().error().code(), Errc::timeout);
}

TEST(Listener, SilentAndTalkativeStrangersDontBlockALink) {
  Token token = random_token();
  Result<Listener> listener = Listener::open("127.0.0.1", 0, token, {});
  ASSERT_TRUE(listener.ok());
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 20; ++i) {
    strangers.push_back(stranger_to(listener->port()));
    if (i % 2 == 0) {
      ASSERT_GT(::send(strangers.back().get(), "GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n",
                       44, MSG_NOSIGNAL),
                0);
    }
  }
  auto accepting = std::async(std::launch::async, [&] { return listener->accept(generous_ms); });
  Result<Link> link = connect("127.0.0.1", listener->port(), token, LinkKind::urgent, 0, {});
  EXPECT_TRUE(link.ok()) << link.error().what();
  Result<Link> accepted = accepting.get();
  ASSERT_TRUE(accepted.ok()) << accepted.error().what();
  EXPECT_EQ(accepted->kind(), LinkKind::urgent);
}

TEST(Listener, TheOldestStrangerMakesRoom) {
  Result<Listener> listener = Listener::open("127.0.0.1", 0, random_token(), {});
  ASSERT_TRUE(listener.ok());
  auto accepting = std::async(std::launch::async, [&] { return listener->accept(1'000); });
  UniqueFd first = stranger_to(listener->port());
  std::vector<UniqueFd> others;
  for (std::size_t i = 0; i < Listener::strangers_max; ++i)
    others.push_back(stranger_to(listener->port()));
  EXPECT_TRUE(closed_by_peer(first.get()));
  EXPECT_EQ(accepting.get().error().code(), Errc::timeout);
}

TEST(Link, ConnectIsBounded) {
  // Something that accepts (by its backlog) and never answers.
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  Result<Address> at = numeric_address("127.0.0.1", 0);
  ASSERT_EQ(::bind(fd.get(), at->get(), at->size), 0);
  ASSERT_EQ(::listen(fd.get(), 4), 0);
  socklen_t size = sizeof at->storage;
  ASSERT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at->storage), &size), 0);
  std::uint16_t port = ntohs(reinterpret_cast<sockaddr_in*>(&at->storage)->sin_port);
  Result<Link> link =
      connect("127.0.0.1", port, random_token(), LinkKind::control, 0, {.connect_timeout_ms = 50});
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.error().code(), Errc::timeout);
  EXPECT_EQ(numeric_address("localhost", 1).error().code(), Errc::invalid);
}

TEST(Handshake, CodesDependOnEveryInput) {
  Token token{};
  Hello hello = make_hello(LinkKind::data, 1, Nonce{});
  const Mac base = authenticate(token, source_role, hello, Nonce{});
  EXPECT_NE(base, authenticate(token, target_role, hello, Nonce{}));
  EXPECT_NE(base,
            authenticate(token, source_role, make_hello(LinkKind::data, 2, Nonce{}), Nonce{}));
  EXPECT_NE(base, authenticate(token, source_role, hello, random_nonce()));
  EXPECT_NE(base, authenticate(random_token(), source_role, hello, Nonce{}));
  hello[5] = std::byte{9};
  EXPECT_FALSE(parse_hello(hello).ok());
}

}  // namespace
}  // namespace godwit::transport

// Everything happens in network namespaces made by the test.
#include "sys/netlink.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

namespace godwit::sys {
namespace {

// A new namespace, held by its descriptor alone.
UniqueFd new_netns() {
  UniqueFd fd;
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) return;
    Result<UniqueFd> opened = open_netns();
    if (opened.ok()) fd = std::move(opened).value();
  }).join();
  return fd;
}

#define ASSERT_OK(expr)                                    \
  do {                                                     \
    auto outcome_ = (expr);                                \
    ASSERT_TRUE(outcome_.ok()) << outcome_.error().what(); \
  } while (false)

class NetlinkTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to make network namespaces";
    here_ = new_netns();
    there_ = new_netns();
    ASSERT_TRUE(here_.valid() && there_.valid());
    Result<Netlink> here = Netlink::open_in(here_.get());
    Result<Netlink> there = Netlink::open_in(there_.get());
    ASSERT_TRUE(here.ok() && there.ok());
    a_.emplace(std::move(here).value());
    b_.emplace(std::move(there).value());
  }
  UniqueFd here_, there_;
  std::optional<Netlink> a_, b_;
};

TEST(NetlinkAddresses, ParseAndPrintRoundTrip) {
  EXPECT_EQ(to_string(*parse_ipv4("10.1.2.3")), "10.1.2.3");
  EXPECT_EQ(to_string(*parse_ipv4_prefix("10.1.2.3/16")), "10.1.2.3/16");
  EXPECT_EQ(parse_ipv4_prefix("10.1.2.3")->length, 32);
  EXPECT_EQ(to_string(*parse_mac("02:00:ab:cd:ef:01")), "02:00:ab:cd:ef:01");
  for (const char* bad : {"", "10.1.2", "10.1.2.256", "10.1.2.3.4", " 10.1.2.3"})
    EXPECT_FALSE(parse_ipv4(bad).ok()) << bad;
  for (const char* bad : {"10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8x", "/8"})
    EXPECT_FALSE(parse_ipv4_prefix(bad).ok()) << bad;
  for (const char* bad : {"", "02:00:ab:cd:ef", "02:00:ab:cd:ef:0g", "02-00-ab-cd-ef-01"})
    EXPECT_FALSE(parse_mac(bad).ok()) << bad;
}

TEST(NetlinkAddresses, OverlapIsSymmetricContainment) {
  Ipv4Prefix wide = *parse_ipv4_prefix("10.4.0.0/16");
  Ipv4Prefix narrow = *parse_ipv4_prefix("10.4.7.1/24");
  Ipv4Prefix other = *parse_ipv4_prefix("10.5.0.0/16");
  EXPECT_TRUE(wide.overlaps(narrow) && narrow.overlaps(wide));
  EXPECT_FALSE(wide.overlaps(other) || other.overlaps(wide));
  EXPECT_TRUE(Ipv4Prefix{}.length == 32 && parse_ipv4_prefix("0.0.0.0/0")->overlaps(other));
  EXPECT_EQ(to_string(narrow.network()), "10.4.7.0");
}

TEST_F(NetlinkTest, VethSpansNamespacesWithNamesAndMacs) {
  Mac mac = *parse_mac("02:11:22:33:44:55");
  ASSERT_OK(a_->add_veth({"left", mac, -1}, {"right", {}, there_.get()}));
  Result<Link> left = a_->link("left");
  ASSERT_OK(left);
  EXPECT_EQ(left->kind, "veth");
  EXPECT_EQ(left->mac, mac);
  EXPECT_FALSE(left->up);
  EXPECT_EQ(a_->link("right").error().code(), Errc::not_found);
  ASSERT_OK(b_->link("right"));
  ASSERT_OK(a_->set_up("left", true));
  ASSERT_OK(b_->set_up("right", true));
  EXPECT_TRUE(a_->link("left")->running);
  ASSERT_OK(b_->delete_link("right"));
  EXPECT_EQ(a_->link("left").error().code(), Errc::not_found) << "both ends go together";
}

TEST_F(NetlinkTest, ChangesMacMtuNameAndNamespace) {
  ASSERT_OK(a_->add_veth({"x", {}, -1}, {"y", {}, -1}));
  ASSERT_OK(a_->set_mac("x", *parse_mac("02:00:00:00:00:07")));
  ASSERT_OK(a_->set_mtu("x", 1400));
  ASSERT_OK(a_->rename("x", "z"));
  EXPECT_EQ(to_string(a_->link("z")->mac), "02:00:00:00:00:07");
  EXPECT_EQ(a_->link("z")->mtu, 1400U);
  ASSERT_OK(a_->move_to("z", there_.get()));
  ASSERT_OK(b_->link("z"));
}

TEST_F(NetlinkTest, PortStateGatesABridgePort) {
  ASSERT_OK(a_->add_bridge("br", parse_mac("02:00:00:00:00:01").value()));
  ASSERT_OK(a_->add_veth({"port", {}, -1}, {"peer", {}, there_.get()}));
  EXPECT_EQ(a_->port_state("port").error().code(), Errc::not_found);
  ASSERT_OK(a_->set_master("port", "br"));
  for (const char* name : {"br", "port"}) ASSERT_OK(a_->set_up(name, true));
  ASSERT_OK(b_->set_up("peer", true));
  EXPECT_EQ(*a_->port_state("port"), PortState::forwarding);
  ASSERT_OK(a_->set_port_state("port", PortState::disabled));
  EXPECT_EQ(*a_->port_state("port"), PortState::disabled);
  EXPECT_TRUE(b_->link("peer")->running) << "the other end must not notice";
  ASSERT_OK(a_->set_port_state("port", PortState::forwarding));
  EXPECT_EQ(*a_->port_state("port"), PortState::forwarding);
  EXPECT_EQ(a_->link("port")->master, a_->link("br")->index);
  ASSERT_OK(a_->set_master("port", ""));
  EXPECT_EQ(a_->link("port")->master, 0);
}

TEST_F(NetlinkTest, RoutesAreReplacedWithTheirMetrics) {
  ASSERT_OK(a_->add_veth({"e", {}, -1}, {"f", {}, there_.get()}));
  ASSERT_OK(a_->set_up("e", true));
  ASSERT_OK(a_->add_address("e", *parse_ipv4_prefix("10.9.0.1/16")));
  EXPECT_EQ(a_->addresses("e")->size(), 1U);
  Route route;
  route.to = parse_ipv4_prefix("10.9.7.0/24").value();
  route.dev = "e";
  route.source = parse_ipv4("10.9.0.1").value();
  ASSERT_OK(a_->replace_route(route));
  route.rto_min_ms = 5;
  ASSERT_OK(a_->replace_route(route));
  Route far;
  far.gateway = parse_ipv4("10.9.0.2").value();
  ASSERT_OK(a_->replace_route(far));
  Result<std::vector<Route>> routes = a_->routes();
  ASSERT_OK(routes);
  int found = 0;
  bool through = false;
  for (const Route& each : *routes) {
    if (!each.to) through = to_string(*each.gateway) == "10.9.0.2" && each.dev == "e";
    if (!each.to || to_string(*each.to) != "10.9.7.0/24") continue;
    ++found;
    EXPECT_EQ(each.rto_min_ms, 5U);
    EXPECT_EQ(each.dev, "e");
    EXPECT_EQ(to_string(*each.source), "10.9.0.1");
  }
  EXPECT_EQ(found, 1);
  EXPECT_TRUE(through);
  ASSERT_OK(a_->delete_route(route));
  EXPECT_FALSE(a_->delete_route(route).ok());
  ASSERT_OK(a_->delete_address("e", *parse_ipv4_prefix("10.9.0.1/16")));
  EXPECT_TRUE(a_->addresses("e")->empty());
}

TEST_F(NetlinkTest, NeighboursComeAndGo) {
  ASSERT_OK(a_->add_veth({"e", {}, -1}, {"f", {}, there_.get()}));
  ASSERT_OK(a_->set_up("e", true));
  Ipv4 address = *parse_ipv4("10.9.0.77");
  ASSERT_OK(a_->replace_neighbour("e", address, *parse_mac("02:00:00:00:00:09")));
  ASSERT_OK(a_->replace_neighbour("e", address, *parse_mac("02:00:00:00:00:0a")));
  ASSERT_OK(a_->delete_neighbour("e", address));
  EXPECT_FALSE(a_->delete_neighbour("e", address).ok());
}

TEST_F(NetlinkTest, RateLimitsComeAndGo) {
  ASSERT_OK(a_->add_veth({"e", {}, -1}, {"f", {}, there_.get()}));
  ASSERT_OK(a_->set_rate("e", 0));
  ASSERT_OK(a_->set_rate("e", 125'000'000));
  ASSERT_OK(a_->set_rate("e", 1'250'000));
  ASSERT_OK(a_->set_rate("e", 0));
  ASSERT_OK(a_->set_rate("e", 0));
}

TEST_F(NetlinkTest, ErrorsNameTheRequestAndKeepErrno) {
  Result<void> twice = a_->add_bridge("lo");
  ASSERT_FALSE(twice.ok());
  EXPECT_EQ(twice.error().sys_errno(), EEXIST);
  EXPECT_NE(twice.error().what().find("add bridge lo"), std::string::npos);
  EXPECT_EQ(a_->add_bridge("a-name-longer-than-fifteen").error().code(), Errc::invalid);
  EXPECT_EQ(a_->delete_link("nothing").error().code(), Errc::not_found);
}

TEST_F(NetlinkTest, AThreadRunsInAnotherNamespaceAndTheCallerStays) {
  ASSERT_OK(b_->add_bridge("onlythere"));
  auto count = []() -> Result<int> {
    Netlink netlink = TRY(Netlink::open());
    return TRY(netlink.link("onlythere")).index;
  };
  EXPECT_TRUE(run_in_netns(there_.get(), count).ok());
  EXPECT_FALSE(count().ok());
}

}  // namespace
}  // namespace godwit::sys

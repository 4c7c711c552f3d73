#include "local/local_cluster.h"
#include <gtest/gtest.h>
using namespace godwit; using namespace godwit::local;
TEST(Local, Up) {
  UpOptions o; o.name="t1"; o.daemon_path="/work/wt/cluster/build/release/bin/local_test_daemon";
  o.progress=[](const std::string&l){puts(l.c_str());};
  auto r=local_up(o); ASSERT_TRUE(r.ok())<<r.error().what();
  puts(to_json(*r).c_str());
  if(getenv("KEEP")) return;
  auto d=local_down("t1"); ASSERT_TRUE(d.ok())<<d.error().what();
}

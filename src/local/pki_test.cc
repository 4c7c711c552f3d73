#include "local/pki.h"

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace godwit::local {
namespace {

template <typename T, typename Read>
T* from_pem(const std::string& text, Read read) {
  BIO* bio = BIO_new_mem_buf(text.data(), static_cast<int>(text.size()));
  T* made = read(bio, nullptr, nullptr, nullptr);
  BIO_free(bio);
  return made;
}
X509* certificate_of(const std::string& text) { return from_pem<X509>(text, PEM_read_bio_X509); }

Authority authority_of(const std::string& cluster) {
  return std::move(Authority::create(cluster)).value();
}

bool trusts(const std::string& authority, const std::string& certificate, int purpose) {
  X509* root = certificate_of(authority);
  X509* leaf = certificate_of(certificate);
  X509_STORE* store = X509_STORE_new();
  X509_STORE_add_cert(store, root);
  X509_STORE_CTX* context = X509_STORE_CTX_new();
  X509_STORE_CTX_init(context, store, leaf, nullptr);
  X509_STORE_CTX_set_purpose(context, purpose);
  bool good = X509_verify_cert(context) == 1;
  X509_STORE_CTX_free(context);
  X509_STORE_free(store);
  X509_free(leaf);
  X509_free(root);
  return good;
}

TEST(Pki, NodesAreTrustedByTheirOwnClusterOnly) {
  Authority ours = authority_of("a");
  Authority theirs = authority_of("a");
  Credentials node = *ours.issue("n1", "10.64.0.1");
  for (int purpose : {X509_PURPOSE_SSL_SERVER, X509_PURPOSE_SSL_CLIENT}) {
    EXPECT_TRUE(trusts(ours.certificate(), node.certificate, purpose));
    EXPECT_FALSE(trusts(theirs.certificate(), node.certificate, purpose));
  }
}

TEST(Pki, ACertificateNamesItsNodeAndFitsItsKey) {
  Authority authority = authority_of("a");
  Credentials node = *authority.issue("n7", "10.64.0.7");
  X509* certificate = certificate_of(node.certificate);
  ASSERT_NE(certificate, nullptr);
  EXPECT_EQ(X509_check_host(certificate, "n7", 2, 0, nullptr), 1);
  EXPECT_EQ(X509_check_host(certificate, "n8", 2, 0, nullptr), 0);
  EXPECT_EQ(X509_check_ip_asc(certificate, "10.64.0.7", 0), 1);
  EXPECT_EQ(X509_check_ca(certificate), 0) << "a node signs nothing";
  EVP_PKEY* key = from_pem<EVP_PKEY>(node.key, PEM_read_bio_PrivateKey);
  ASSERT_NE(key, nullptr);
  EXPECT_EQ(X509_check_private_key(certificate, key), 1);
  EVP_PKEY_free(key);
  X509_free(certificate);
}

}  // namespace
}  // namespace godwit::local

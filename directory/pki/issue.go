package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	caFile    = "ca.crt"
	caKeyFile = "ca.key"

	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour

	// A machine whose clock is a little behind must not refuse a fresh certificate.
	backdated = time.Hour
)

// A Request says for whom a certificate is.
type Request struct {
	Kind     Kind
	Name     string
	IPs      []netip.Addr  // addresses of a server, for callers that check them
	Lifetime time.Duration // 0: a year
}

// Init makes a cluster's CA in dir: ca.crt and ca.key, the latter readable by
// its owner only. It never replaces a CA: [ErrExists].
func Init(dir, cluster string) error {
	if err := (Identity{cluster, Operator, "ca"}).check(); err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	for _, name := range []string{caFile, caKeyFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, name), ErrExists)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	ca := template(pkix.Name{CommonName: "Replug CA " + cluster, Organization: []string{cluster}}, caLife)
	ca.IsCA, ca.BasicConstraintsValid, ca.MaxPathLenZero = true, true, true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return write(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile), ca, nil, nil)
}

// Issue makes <name>.crt and <name>.key in dir, signed by dir's CA. Issued again
// for the same name they are replaced: programs that run take the new ones over.
func Issue(dir string, r Request) (Files, error) {
	signer, err := tls.LoadX509KeyPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	if err != nil {
		return Files{}, fmt.Errorf("issue %s: load the CA (pki init makes one): %w", r.Name, err)
	}
	if len(signer.Leaf.Subject.Organization) != 1 {
		return Files{}, fmt.Errorf("issue %s: the CA names no cluster: %w", r.Name, ErrIdentity)
	}
	id := Identity{signer.Leaf.Subject.Organization[0], r.Kind, r.Name}
	if err := id.check(); err != nil {
		return Files{}, fmt.Errorf("issue %s: %w", r.Name, err)
	}
	files := DirFiles(dir, r.Name)
	if err := ofAnother(files.Cert, id); err != nil {
		return Files{}, err
	}
	return files, write(files.Cert, files.Key, leaf(id, r), signer.Leaf, signer.PrivateKey)
}

// ofAnother refuses to replace the certificate of another identity: a host
// "ca" or an operator named as a host would take its files away.
func ofAnother(cert string, id Identity) error {
	if filepath.Base(cert) == caFile {
		return fmt.Errorf("issue %s: the name is the CA's: %w", id, ErrIdentity)
	}
	old, err := certificate(cert)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("issue %s: %w", id, err)
	}
	if was, err := ofCertificate(old); err != nil || was != id {
		return fmt.Errorf("issue %s: %s is of %s: choose another name: %w", id, cert, was, ErrExists)
	}
	return nil
}

func leaf(id Identity, r Request) *x509.Certificate {
	life := r.Lifetime
	if life == 0 {
		life = leafLife
	}
	c := template(pkix.Name{CommonName: id.Name}, life)
	uri, _ := url.Parse(id.String()) // of words that were checked
	c.URIs = []*url.URL{uri}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Kind == Server {
		c.DNSNames = []string{ServerName}
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, ip := range r.IPs {
			c.IPAddresses = append(c.IPAddresses, net.IP(ip.AsSlice()))
		}
	}
	return c
}

func template(subject pkix.Name, life time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // never fails since Go 1.24
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-backdated), NotAfter: now.Add(life)}
}

// write signs c with a fresh key. Without a signer c signs itself.
func write(certPath, keyPath string, c, signer *x509.Certificate, with crypto.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make %s: %w", keyPath, err)
	}
	if signer == nil {
		signer, with = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, with)
	if err != nil {
		return fmt.Errorf("sign %s: %w", certPath, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", keyPath, err)
	}
	// The certificate last: its time is what a running program looks at.
	if err := replace(keyPath, "PRIVATE KEY", keyDER, 0o600); err != nil {
		return err
	}
	return replace(certPath, "CERTIFICATE", der, 0o644)
}

// replace writes a PEM file whole or not at all.
func replace(path, kind string, der []byte, mode os.FileMode) error {
	tmp := path + ".new"
	_ = os.Remove(tmp) // of a run that was killed; its mode may be another
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// certificate reads the first certificate of a PEM file.
func certificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"replug/control"
	"replug/control/network"
	"replug/directory/vnet"
)

// options are everything on the command line.
type options struct {
	Name, DataDir, Listen, Advertise, Metrics string
	CA, Cert, Key                             string
	Endpoints, Roles                          []string
	BootBudget                                time.Duration
	BootsPerHost, StoreQuota                  int

	etcdCA, etcdCert, etcdKey string
	file, format, level       string
	vniRange                  string
	etcdTLS                   *tls.Config
	vnis                      network.Range
	log                       *slog.Logger
}

// flags declares every setting. The names are those of the configuration file.
func (o *options) flags(f *pflag.FlagSet) {
	f.StringVar(&o.file, "config", "", "YAML file with these flags' names as keys; flags override it")
	f.StringVar(&o.Name, "name", "", "the server's name, unique among the servers (default: the machine's)")
	f.StringVar(&o.DataDir, "data-dir", "", "directory of the embedded store; or")
	f.IntVar(&o.StoreQuota, "store-quota", 2048, "MiB that the embedded store may grow to, 64 to 8192")
	f.StringSliceVar(&o.Endpoints, "etcd-endpoints", nil, "an external etcd cluster, then any number of servers")
	f.StringVar(&o.etcdCA, "etcd-ca", "", "certificate authority of the external etcd")
	f.StringVar(&o.etcdCert, "etcd-cert", "", "certificate for the external etcd")
	f.StringVar(&o.etcdKey, "etcd-key", "", "key for the external etcd")
	f.StringVar(&o.Listen, "listen", ":7443", "address for hosts and the API")
	f.StringVar(&o.Advertise, "advertise", "", "address under which others reach this server (default: that of --listen)")
	f.StringVar(&o.Metrics, "metrics-listen", "127.0.0.1:9416", "address of /metrics; empty: none")
	f.StringVar(&o.CA, "ca", "", "certificate authority of the cluster")
	f.StringVar(&o.Cert, "cert", "", "certificate of this server")
	f.StringVar(&o.Key, "key", "", "key of this server")
	f.StringSliceVar(&o.Roles, "roles", []string{"directory", "control"}, "what this server does; only both together so far")
	f.StringVar(&o.vniRange, "vni-range", "4096-16777215", "VNIs that are given to networks which ask for none")
	f.DurationVar(&o.BootBudget, "boot-budget", control.DefaultBootBudget, "a VM without success by then has failed")
	f.IntVar(&o.BootsPerHost, "boots-per-host", control.DefaultBootsPerHost, "VMs that boot at once on a host for the pool")
	f.StringVar(&o.format, "log-format", "text", "text or json")
	f.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
}

// complete reads the file, checks everything and fills in what was left out.
func (o *options) complete(f *pflag.FlagSet) error {
	if err := o.readFile(f); err != nil {
		return err
	}
	machine, _ := os.Hostname()
	o.Name = cmp.Or(o.Name, machine)
	o.Advertise = cmp.Or(o.Advertise, o.Listen)
	if (o.DataDir == "") == (len(o.Endpoints) == 0) {
		return fmt.Errorf("give either --data-dir or --etcd-endpoints (%w)", errUsage)
	}
	if o.CA == "" || o.Cert == "" || o.Key == "" {
		return fmt.Errorf("--ca, --cert and --key are needed: make them with replug pki (%w)", errUsage)
	}
	if roles := slices.Sorted(slices.Values(o.Roles)); !slices.Equal(roles, []string{"control", "directory"}) {
		return fmt.Errorf("roles %s: only directory,control together so far (%w)", strings.Join(o.Roles, ","), errUsage)
	}
	if o.StoreQuota < 64 || o.StoreQuota > 8192 {
		return fmt.Errorf("store-quota %d: 64 to 8192 MiB (%w)", o.StoreQuota, errUsage)
	}
	var err error
	if o.vnis, err = vniRange(o.vniRange); err != nil {
		return err
	}
	if err := o.completeTLS(); err != nil {
		return err
	}
	return o.logger()
}

func vniRange(s string) (network.Range, error) {
	low, high, ok := strings.Cut(s, "-")
	minimum, err1 := vnet.ParseVNI(low)
	maximum, err2 := vnet.ParseVNI(high)
	if !ok || err1 != nil || err2 != nil || minimum > maximum {
		return network.Range{}, fmt.Errorf("vni-range %q: write it as in 4096-16777215 (%w)", s, errUsage)
	}
	return network.Range{Min: minimum, Max: maximum}, nil
}

// completeTLS reads what the external etcd wants to see.
func (o *options) completeTLS() error {
	if o.etcdCA == "" && o.etcdCert == "" {
		return nil
	}
	pem, err := os.ReadFile(o.etcdCA)
	if err != nil {
		return fmt.Errorf("etcd-ca: %w (%w)", err, errUsage)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("etcd-ca %s: no certificate in it (%w)", o.etcdCA, errUsage)
	}
	o.etcdTLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if o.etcdCert == "" {
		return nil
	}
	own, err := tls.LoadX509KeyPair(o.etcdCert, o.etcdKey)
	if err != nil {
		return fmt.Errorf("etcd-cert: %w (%w)", err, errUsage)
	}
	o.etcdTLS.Certificates = []tls.Certificate{own}
	return nil
}

func (o *options) logger() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return fmt.Errorf("log-level %q: want debug, info, warn or error (%w)", o.level, errUsage)
	}
	with := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "text":
		o.log = slog.New(slog.NewTextHandler(os.Stderr, with))
	case "json":
		o.log = slog.New(slog.NewJSONHandler(os.Stderr, with))
	default:
		return fmt.Errorf("log-format %q: want text or json (%w)", o.format, errUsage)
	}
	return nil
}

// readFile sets what the configuration file says and the command line doesn't. A
// key that is no flag is refused: a typo must not be a default.
func (o *options) readFile(f *pflag.FlagSet) error {
	if o.file == "" {
		return nil
	}
	b, err := os.ReadFile(o.file)
	if err != nil {
		return fmt.Errorf("read the configuration: %w (%w)", err, errUsage)
	}
	var settings map[string]any
	if err := yaml.UnmarshalStrict(b, &settings); err != nil {
		return fmt.Errorf("read the configuration %s: %w (%w)", o.file, err, errUsage)
	}
	for key, value := range settings {
		flag := f.Lookup(key)
		if flag == nil || key == "config" || key == "help" {
			return fmt.Errorf("configuration %s: unknown key %q (%w)", o.file, key, errUsage)
		}
		if flag.Changed {
			continue
		}
		if err := f.Set(key, text(value)); err != nil {
			return fmt.Errorf("configuration %s: %s: %w (%w)", o.file, key, err, errUsage)
		}
	}
	return nil
}

// text prints a value of the file as a flag would be written.
func text(value any) string {
	switch v := value.(type) {
	case []any:
		var all []string
		for _, one := range v {
			all = append(all, text(one))
		}
		return strings.Join(all, ",")
	case float64: // what every YAML number is; %v would write large ones with an exponent
		return fmt.Sprintf("%.f", v)
	}
	return fmt.Sprint(value)
}

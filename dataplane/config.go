package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"

	"replug/dataplane/compute"
	"replug/directory/vnet"
)

// ErrConfig says that a configuration can't work; the text says what is wrong.
var ErrConfig = errors.New("bad configuration")

// A Config says what a host is and where its things are.
type Config struct {
	Servers       []string     // host:port of each server, tried in turn
	Name          string       // of the host, unique in the cluster
	Uplink        string       // device to the underlay; "": that of the default route
	PAPrefix      netip.Prefix // routed to this host; invalid: its own address
	StateDir      string       // lock, records, machines
	BPFFS         string       // a mounted bpf filesystem
	Images        string       // image repository
	Memory        int          // MiB that VMs may use; 0: no VMs of our own
	MaxPorts      int
	MaxMappings   int    // of all networks that have ports here; 0: 65,536
	MaxFlows      int    // of all ports; 0: 65,536
	MaxRules      int    // of all ports; 0: 65,536
	CA, Cert, Key string // files
	XDP           string // of the uplink: auto, on or off
	QEMUArgs      []string
	Accel         string // of QEMU: kvm, tcg, or auto: kvm if a boot proves it
	Labels        map[string]string
	MetricsListen string // "": nobody is served
	PortMetrics   bool   // also a series for each port
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Check returns [ErrConfig] with all that is wrong.
func (c *Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	if len(c.Servers) == 0 {
		bad("no server: give --server HOST:PORT")
	}
	for _, s := range c.Servers {
		if _, _, err := net.SplitHostPort(s); err != nil {
			bad("server %q: want HOST:PORT, an IPv6 address in brackets", s)
		}
	}
	if !hostName.MatchString(c.Name) {
		bad("name %q: want letters, digits, dots and dashes, at most 63", c.Name)
	}
	if c.PAPrefix.IsValid() && (c.PAPrefix != c.PAPrefix.Masked() || c.PAPrefix.Addr().Is4In6()) {
		bad("pa-prefix %s: want a prefix without host bits, such as %s", c.PAPrefix, c.PAPrefix.Masked())
	}
	for name, dir := range map[string]string{"state-dir": c.StateDir, "bpffs": c.BPFFS, "images": c.Images} {
		if !filepath.IsAbs(dir) {
			bad("%s %q: want an absolute path", name, dir)
		}
	}
	if c.MaxPorts < 1 || c.MaxPorts > int(vnet.MaxPortID) {
		bad("max-ports %d: want 1 to %d", c.MaxPorts, vnet.MaxPortID)
	}
	for name, n := range map[string]int{"max-mappings": c.MaxMappings, "max-flows": c.MaxFlows, "max-rules": c.MaxRules} {
		if n < 0 || n > 1<<24 {
			bad("%s %d: want 1 to %d", name, n, 1<<24)
		}
	}
	if c.Accel != "" && c.Accel != "auto" && c.Accel != "kvm" && c.Accel != "tcg" {
		bad("accel %q: want auto, kvm or tcg", c.Accel)
	}
	if c.XDP != "" && c.XDP != XDPAuto && c.XDP != XDPOn && c.XDP != XDPOff {
		bad("xdp %q: want auto, on or off", c.XDP)
	}
	if c.Memory < 0 {
		bad("memory %d MiB", c.Memory)
	}
	if c.CA == "" || c.Cert == "" || c.Key == "" {
		bad("no certificates: give --ca, --cert and --key (see: replug pki)")
	}
	return errors.Join(errs...)
}

// pins is where the datapath is pinned.
func (c *Config) pins() string { return filepath.Join(c.BPFFS, "replug") }

// info is the host as it registers.
func (c *Config) info(address netip.Addr, mtu uint16, images []compute.Image, version string) vnet.HostInfo {
	h := vnet.HostInfo{
		Name: c.Name, Address: address, PAPrefix: c.PAPrefix, MTU: mtu, Ports: c.MaxPorts, Memory: c.Memory,
		Labels: c.Labels, Version: version,
	}
	for _, im := range images {
		h.Images = append(h.Images, im.Name)
		if !im.Personality.Agent() {
			if h.Personalities == nil {
				h.Personalities = make(map[string]vnet.Personality)
			}
			h.Personalities[im.Name] = im.Personality
		}
	}
	return h
}

package main

import (
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"
)

type flagSet = *pflag.FlagSet

// flags declares every setting. The names are those of the configuration file.
func (o *options) flags(f flagSet) {
	f.StringVar(&o.file, "config", "", "YAML file with these flags' names as keys; flags override it")
	f.StringArrayVar(&o.Servers, "server", nil, "HOST:PORT of a server; repeat it: they are tried in turn")
	f.StringVar(&o.Name, "name", "", "the host's name in the cluster (default: the machine's)")
	f.StringVar(&o.Uplink, "uplink", "", "device to the underlay (default: that of the default route)")
	f.StringVar(&o.paPrefix, "pa-prefix", "", "provider addresses, IPv4 or IPv6, that are routed to this host (default: its own address)")
	f.StringVar(&o.StateDir, "state-dir", "/var/lib/replug-host", "lock, port records, machines")
	f.StringVar(&o.BPFFS, "bpffs", "/sys/fs/bpf", "bpf filesystem; the datapath is pinned in its directory replug")
	f.StringVar(&o.Images, "images", "/var/lib/replug-host/images", "images: NAME/{vmlinuz,initrd.img,cmdline,disk.qcow2}")
	f.IntVar(&o.Memory, "memory", 0, "MiB that VMs may use; 0: only attached ports")
	f.IntVar(&o.MaxPorts, "max-ports", 256, "ports that may be placed here, at most 16382")
	f.IntVar(&o.MaxMappings, "max-mappings", 65536, "addresses of all networks with ports here; 105 bytes of kernel memory each")
	f.IntVar(&o.MaxFlows, "max-flows", 65536, "connections of all ports, of each family; an eighth of them for one port at most; 192 (IPv6: 216) bytes of kernel memory each")
	f.IntVar(&o.MaxRules, "max-rules", 65536, "rules of all ports together, each port's own copy counted; 64 bytes of kernel memory each")
	f.StringVar(&o.CA, "ca", "", "certificate authority of the cluster")
	f.StringVar(&o.Cert, "cert", "", "certificate of this host")
	f.StringVar(&o.Key, "key", "", "key of this host")
	f.StringVar(&o.XDP, "xdp", "auto", "auto, on or off: take small packets off the uplink before the kernel makes socket buffers")
	f.StringArrayVar(&o.QEMUArgs, "qemu-arg", nil, "argument for every VM's QEMU; {dir} and {id} are filled in; repeatable")
	f.StringVar(&o.Accel, "accel", "auto", "kvm, tcg, or auto: kvm if a boot proves that it works here")
	f.StringToStringVar(&o.Labels, "label", nil, "KEY=VALUE that says where the host is; repeatable")
	f.StringVar(&o.MetricsListen, "metrics-listen", "127.0.0.1:9417", "address of /metrics; empty: none")
	f.BoolVar(&o.PortMetrics, "port-metrics", false, "also count in /metrics what each port sends and gets: five series a port, which name VMs")
	f.StringVar(&o.format, "log-format", "text", "text or json")
	f.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
}

// readFile sets what the configuration file says and the command line doesn't.
// A key that is no flag is refused: a typo must not be a default.
func (o *options) readFile(f flagSet) error {
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
		if flag == nil || slices.Contains([]string{"config", "help", "uninstall"}, key) {
			return fmt.Errorf("configuration %s: unknown key %q (%w)", o.file, key, errUsage)
		}
		if flag.Changed {
			continue
		}
		if err := set(flag.Value, value); err != nil {
			return fmt.Errorf("configuration %s: %s: %w (%w)", o.file, key, err, errUsage)
		}
	}
	return nil
}

// set gives a flag a value of the file: a scalar, a list or a map of scalars.
func set(v pflag.Value, value any) error {
	switch value := value.(type) {
	case []any:
		list, ok := v.(pflag.SliceValue)
		if !ok {
			return fmt.Errorf("want one value, not a list")
		}
		var all []string
		for _, one := range value {
			all = append(all, fmt.Sprint(one))
		}
		return list.Replace(all)
	case map[string]any:
		var all []string
		for k, one := range value {
			all = append(all, fmt.Sprintf("%s=%v", k, one))
		}
		sort.Strings(all)
		for _, pair := range all {
			if err := v.Set(pair); err != nil {
				return err
			}
		}
		return nil
	case float64: // what every YAML number is; %v would write large ones with an exponent
		return v.Set(fmt.Sprintf("%.f", value))
	}
	return v.Set(fmt.Sprint(value))
}

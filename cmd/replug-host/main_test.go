package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"replug/dataplane"
)

func TestConfigurationFile(t *testing.T) {
	const all = `
server: [10.1.2.3:7443, "10.1.2.4:7443"]
name: h9
pa-prefix: 100.64.9.0/24
memory: 1234567
max-ports: 77
qemu-arg: [-serial, "unix:{dir}/exec.sock"]
label: {rack: r7, region: 5}
metrics-listen: ""
port-metrics: true
`
	for _, c := range []struct {
		name, file string
		args       []string
		check      func(*options) string
		err        error
	}{
		{"everything", all, nil, func(o *options) string {
			return cmp.Diff(dataplane.Config{
				Servers: []string{"10.1.2.3:7443", "10.1.2.4:7443"}, Name: "h9", Memory: 1234567, MaxPorts: 77,
				QEMUArgs: []string{"-serial", "unix:{dir}/exec.sock"}, Labels: map[string]string{"rack": "r7", "region": "5"},
				StateDir: o.StateDir, BPFFS: o.BPFFS, Images: o.Images, Accel: "auto", XDP: "auto", MaxMappings: 65536, MaxFlows: 65536, MaxRules: 65536, PortMetrics: true, PAPrefix: o.PAPrefix,
			}, o.Config, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
		}, nil},
		{"the command line wins", all, []string{"--name", "h8", "--server", "10.9.9.9:1"}, func(o *options) string {
			return cmp.Diff([]string{"h8", "10.9.9.9:1", "100.64.9.0/24"}, []string{o.Name, strings.Join(o.Servers, ","), o.PAPrefix.String()})
		}, nil},
		{"unknown key", "nmae: h9\n", nil, nil, errUsage},
		{"key that is no setting", "uninstall: true\n", nil, nil, errUsage},
		{"twice the same key", "name: h9\nname: h8\n", nil, nil, errUsage},
		{"list for a word", "name: [h9]\n", nil, nil, errUsage},
		{"word for a number", "memory: much\n", nil, nil, errUsage},
		{"bad prefix", "pa-prefix: 100.64.9.0\n", nil, nil, errUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "host.yaml")
			if err := os.WriteFile(path, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			var o options
			fs := pflag.NewFlagSet("replug-host", pflag.ContinueOnError)
			o.flags(fs)
			if err := fs.Parse(append([]string{"--config", path}, c.args...)); err != nil {
				t.Fatal(err)
			}
			err := o.complete(fs)
			if !errors.Is(err, c.err) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.check == nil {
				return
			}
			if d := c.check(&o); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
		})
	}
}

// Help begins with what a newcomer copies: a command's own example, said once, which
// its flags take.
func TestHelp(t *testing.T) {
	for args, begin := range map[string]string{
		"--help":          "Example:\n  replug-host --server ",
		"check --help":    "Example:\n  replug-host check",
		"teardown --help": "Example:\n  replug-host teardown --config ",
	} {
		var out bytes.Buffer
		c := command()
		c.SetArgs(strings.Fields(args))
		c.SetOut(&out)
		if err := c.Execute(); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(out.String(), begin) || strings.Count(out.String(), "Example") != 1 {
			t.Errorf("%s:\n%s", args, out.String())
		}
		cmd, _, _ := command().Find(strings.Fields(args)[:1])
		for line := range strings.Lines(strings.ReplaceAll(cmd.Example, "\\\n      ", "")) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "    ") // what follows is said of it
			c, rest, err := command().Find(strings.Fields(line)[1:])
			if err == nil {
				err = c.ParseFlags(rest)
			}
			if err != nil || !strings.HasPrefix(c.CommandPath(), cmd.CommandPath()) || c.ValidateArgs(c.Flags().Args()) != nil {
				t.Errorf("%s: example %q: %v", args, line, err)
			}
		}
	}
}

// Mistakes on the command line are told apart from trouble on the host.
func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--nmae", "h9"}, 2},
		{[]string{"--config", "/nowhere.yaml"}, 2},
		{[]string{"--name", "h9"}, 2},
		{[]string{"check", "--bpffs", t.TempDir()}, 1},
	} {
		cmd := command()
		cmd.SetArgs(c.args)
		if err := cmd.ExecuteContext(t.Context()); err == nil || code(err) != c.want {
			t.Errorf("%v: %v, code %d, want %d", c.args, err, code(err), c.want)
		}
	}
}

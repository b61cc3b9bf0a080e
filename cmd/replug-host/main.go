// Command replug-host is the agent of one host: see package dataplane.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"replug/dataplane"
)

const help = `{{with .Example}}Example:
{{.}}

{{end}}{{.Short}}.

{{.UsageString}}`

// usage is cobra's without the example, which stands first.
const usage = `Usage:
  {{.UseLine}}{{if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND

Commands:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

func main() {
	// The agent is small and shares its host with guests: better collect garbage
	// a little earlier than grow.
	debug.SetGCPercent(50)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "replug-host:", err)
		os.Exit(code(err))
	}
}

// errUsage is a command line that can't be understood.
var errUsage = errors.New("see replug-host --help")

func code(err error) int {
	if errors.Is(err, errUsage) || errors.Is(err, dataplane.ErrConfig) {
		return 2
	}
	return 1
}

// options are everything on the command line.
type options struct {
	dataplane.Config
	paPrefix  string
	file      string
	format    string
	level     string
	uninstall bool
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "replug-host",
		Short: "Agent of one host: loads the datapath, runs ports and VMs, moves them between networks",
		Args:  cobra.NoArgs,
		Example: `  replug-host --server 172.31.250.2:7443 --name h1 --uplink eth0 --pa-prefix 100.64.1.0/24 \
      --ca ca.crt --cert h1.crt --key h1.key --memory 8192
  replug-host --config /etc/replug/host.yaml
  replug-host check`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			return o.complete(c.Flags())
		},
		RunE: func(c *cobra.Command, _ []string) error {
			if o.uninstall {
				return teardown(o.Config)
			}
			return run(c.Context(), o)
		},
	}
	c.SetHelpTemplate(help)
	c.SetUsageTemplate(usage)
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w (%w)", err, errUsage) })
	o.flags(c.PersistentFlags())
	c.Flags().BoolVar(&o.uninstall, "uninstall", false, "same as teardown")
	var asJSON bool
	check := &cobra.Command{
		Use: "check", Short: "Say what this machine lacks, what that costs, and what to do", Args: cobra.NoArgs,
		Example: "  replug-host check\n  replug-host check --config /etc/replug/host.yaml --json",
		RunE: func(c *cobra.Command, _ []string) error {
			return dataplane.Report(c.OutOrStdout(), dataplane.Look(o.BPFFS, o.Uplink, o.PAPrefix), asJSON)
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "for a program")
	c.AddCommand(check, &cobra.Command{
		Use: "teardown", Args: cobra.NoArgs,
		Short:   "Take the datapath out of force and remove all devices; machines go on without a network",
		Example: "  replug-host teardown --config /etc/replug/host.yaml    the route of the prefix in it goes, too",
		RunE:    func(*cobra.Command, []string) error { return teardown(o.Config) },
	})
	return c
}

func run(ctx context.Context, o options) error {
	log, err := o.logger()
	if err != nil {
		return err
	}
	h, err := dataplane.New(ctx, o.Config, log)
	if err != nil {
		return err
	}
	if err := h.Run(ctx); err != nil {
		return err
	}
	log.Info("stopped: ports, taps and machines stay")
	return nil
}

func (o *options) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return nil, fmt.Errorf("log-level %q: want debug, info, warn or error (%w)", o.level, errUsage)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return nil, fmt.Errorf("log-format %q: want text or json (%w)", o.format, errUsage)
}

func teardown(c dataplane.Config) error {
	if err := dataplane.Teardown(c); err != nil {
		return fmt.Errorf("teardown: %w", err)
	}
	return nil
}

// complete fills in what neither the file nor the command line says.
func (o *options) complete(f flagSet) error {
	if err := o.readFile(f); err != nil {
		return err
	}
	if o.Name == "" {
		o.Name, _ = os.Hostname()
	}
	if o.paPrefix == "" {
		return nil
	}
	var err error
	if o.PAPrefix, err = netip.ParsePrefix(o.paPrefix); err != nil {
		return fmt.Errorf("pa-prefix: %w (%w)", err, errUsage)
	}
	return nil
}

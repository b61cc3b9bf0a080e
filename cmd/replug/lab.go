package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"replug/tests/cluster"
	"replug/tests/demo"
	"replug/tests/lab"
)

func labCommand() *cobra.Command {
	name := "lab"
	cmd := noun("lab", "A multi-host lab of namespaces on this machine",
		`  replug lab up --hosts 2
  replug lab exec s -- replug host list
  replug lab exec h1 -- ip -br address
  replug lab down`, labUp(&name), labStatus(), labExec(&name), labDown(&name),
		&cobra.Command{Use: "helper", Hidden: true, DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error { return lab.HelperMain(args) }})
	cmd.PersistentFlags().StringVar(&name, "name", name, "name of the lab")
	return cmd
}

// helper is the command that runs the lab's helper processes: this program.
func helper() ([]string, error) {
	self, err := os.Executable()
	return []string{self, "lab", "helper"}, err
}

// programs is the directory that this program was installed in with the others.
func programs() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	bin := filepath.Dir(self)
	for _, p := range []string{"replug-server", "replug-host", "replug-guest"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return "", fmt.Errorf("%s is not beside %s: run 'make build'", p, self)
		}
	}
	return bin, nil
}

func labUp(name *string) *cobra.Command {
	var hosts, memory int
	var six bool
	cmd := &cobra.Command{Use: "up", Short: "Build the lab, start server and hosts in it", Args: exact(0, "no argument"),
		Example: "  replug lab up\n  replug lab up --name six --ipv6 --hosts 3",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			if err := lab.Check(); err != nil {
				return err
			}
			bin, err := programs()
			if err != nil {
				return err
			}
			help, err := helper()
			if err != nil {
				return err
			}
			image, err := lab.BuildGuest(ctx, filepath.Join(bin, "replug-guest"))
			if err != nil {
				return err
			}
			family := lab.IPv4
			if six {
				family = lab.IPv6
			}
			l, err := lab.Up(ctx, lab.Config{Name: *name, Hosts: hosts, Family: family, Helper: help, Detached: true})
			if err != nil {
				return err
			}
			each := make(map[int]int)
			for n := range hosts {
				each[n+1] = memory
			}
			c, err := cluster.Start(ctx, l, cluster.Config{Bin: bin, Image: image, Memory: each})
			if err != nil {
				return errors.Join(err, l.Down(ctx))
			}
			defer c.Close()
			fmt.Fprintf(cmd.OutOrStdout(), "lab %s is up: a server and %d hosts.\n", *name, hosts)
			fmt.Fprintf(cmd.OutOrStdout(), "Try: replug lab exec s --name %s -- replug host list\n", *name)
			return nil
		}}
	cmd.Flags().IntVar(&hosts, "hosts", 2, "how many hosts")
	cmd.Flags().BoolVar(&six, "ipv6", false, "an underlay that has IPv6 alone")
	cmd.Flags().IntVar(&memory, "memory", 2048, "MiB that each host may give to VMs")
	return cmd
}

func labStatus() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show labs and what runs in them", Args: exact(0, "no argument"), Example: "  replug lab status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := &table{head: []string{"LAB", "PROGRAM", "PID", "RUNS", "LOG"}}
			for _, name := range lab.Names() {
				l, err := lab.Open(name)
				if err != nil {
					t.add(name, "", "", false, err)
					continue
				}
				for _, p := range l.Procs() {
					t.add(name, p.Name, p.PID(), p.Alive(), p.Log())
				}
			}
			return t.print(cmd.OutOrStdout())
		}}
}

func labExec(name *string) *cobra.Command {
	return &cobra.Command{Use: "exec NODE -- COMMAND...", Short: "Run a command in a host (h1), the router (r), the server (s) or a guest (g-NAME)",
		Example: "  replug lab exec s -- replug vm list",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{errors.New("lab exec needs a NODE and a COMMAND")}
			}
			l, err := lab.Open(*name)
			if err != nil {
				return err
			}
			node, err := l.Node(args[0])
			if err != nil {
				return err
			}
			return inside(cmd, node, args[1:])
		}}
}

// inside runs a command with this terminal. `replug` finds the server and the
// operator's certificate by itself.
func inside(cmd *cobra.Command, node *lab.Node, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if args[0] == "replug" {
		args[0] = self
	}
	c := exec.CommandContext(cmd.Context(), args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
	c.Env = append(os.Environ(), "REPLUG_SERVER="+cluster.Endpoint(node.Lab()), "REPLUG_PKI="+filepath.Join(node.Lab().Dir(), "pki"), "REPLUG_AS=operator")
	if err := node.Do(c.Start); err != nil {
		return fmt.Errorf("run %s in %s: %w", strings.Join(args, " "), node.Name, err)
	}
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return outcomeError{silent, exit.ExitCode()} // it has said why itself
	}
	return err
}

func labDown(name *string) *cobra.Command {
	var stale bool
	cmd := &cobra.Command{Use: "down", Short: "Remove the lab with everything in it", Args: exact(0, "no argument"),
		Example: "  replug lab down\n  replug lab down --stale",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if stale {
				names, err := lab.DownStale(cmd.Context())
				for _, n := range names {
					fmt.Fprintf(cmd.OutOrStdout(), "lab %s is down; the program that made it is dead\n", n)
				}
				return err
			}
			if err := lab.Down(cmd.Context(), *name); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lab %s is down\n", *name)
			return nil
		}}
	cmd.Flags().BoolVar(&stale, "stale", false, "all labs whose maker is dead, instead of one")
	return cmd
}

func demoCommand() *cobra.Command {
	var file, name, guest string
	cmd := &cobra.Command{Use: "demo", Short: "Play the story: pool, claim, live swap, undo, faults", Args: exact(0, "no argument"),
		Example: "  replug demo --out out/demo.json\n  replug demo --guest debian",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bin, err := programs()
			if err != nil {
				return err
			}
			help, err := helper()
			if err != nil {
				return err
			}
			return demo.Run(cmd.Context(), demo.Options{Out: cmd.OutOrStdout(), File: file, Bin: bin, Helper: help, Name: name, Guest: guest})
		}}
	cmd.Flags().StringVar(&guest, "guest", "", "the image that plays: debian is the stock one with cloud-init and nothing of ours (default: a small one with replug-guest)")
	cmd.Flags().StringVar(&file, "out", "out/demo.json", "file for the result")
	cmd.Flags().StringVar(&name, "lab", "demo", "name of the lab to play in")
	return cmd
}

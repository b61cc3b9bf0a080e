package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	pb "replug/control/controlpb"
)

func vmCommand(c *caller) *cobra.Command {
	ls := ask(c, question[*pb.ListVMsResponse]{use: "list", short: "List VMs", example: "  replug vm list\n  replug vm list --tenant acme -o json", args: exact(0, "no argument"),
		call: func(ctx context.Context, conn *grpc.ClientConn, _ []string) (*pb.ListVMsResponse, error) {
			return pb.NewVMsClient(conn).ListVMs(ctx, &pb.ListVMsRequest{Tenant: c.tenant})
		},
		show: func(r *pb.ListVMsResponse) *table { return vms(r.Vms...) }})
	show := ask(c, question[*pb.VM]{use: "show VM", short: "Show one VM", example: "  replug vm show web-1 --tenant acme\n  replug vm show web-1 --tenant acme -o json    with its settings and its timeline", args: exact(1, "a VM"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.VM, error) {
			return pb.NewVMsClient(conn).GetVM(ctx, &pb.GetVMRequest{Tenant: c.tenant, Name: args[0]})
		},
		show: func(v *pb.VM) *table { return vms(v) }})
	del := c.tell(order{use: "delete VM", short: "Delete a VM with its disks, in mid-swap too", example: "  replug vm delete web-1 --tenant acme", args: exact(1, "a VM"), done: "VM %s is being deleted",
		call: func(ctx context.Context, conn *grpc.ClientConn, name string) error {
			_, err := pb.NewVMsClient(conn).DeleteVM(ctx, &pb.DeleteVMRequest{RequestId: c.id(), Tenant: c.tenant, Name: name})
			return err
		}})
	return noun("vm", "Virtual machines", "  replug vm swap web-1 --tenant acme --network blue --ip 10.0.0.20 --plan",
		vmCreate(c), vmClaim(c), vmSwap(c), ls, show, vmPower(c, "start", "on"), vmPower(c, "stop", "off"), del)
}

func vmPower(c *caller, verb, power string) *cobra.Command {
	return ask(c, question[*pb.VM]{use: verb + " VM", short: "Turn a VM " + power, example: "  replug vm " + verb + " web-1 --tenant acme", args: exact(1, "a VM"),
		call: func(ctx context.Context, conn *grpc.ClientConn, args []string) (*pb.VM, error) {
			return pb.NewVMsClient(conn).SetPower(ctx, &pb.SetPowerRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0], Power: power})
		},
		show: func(v *pb.VM) *table { return vms(v) }})
}

// A wish is what a caller asks of a new VM, from scratch or from the pool.
type wish struct {
	kind, network, host string
	ips, groups         []string
	settings            pb.Settings
	keyFiles, files     []string
	commands, mounts    []string
	userData            string
	dataDisks           []int64
	wait                bool
}

// What is said of the same flags of several commands.
const (
	ipHelp     = "address, one of each family at most (default: the next free ones)"
	groupHelp  = "security group of the network (default: none, all passes)"
	routerHelp = "a gateway: may send from addresses that are not its own"
)

func (w *wish) flags(f *pflag.FlagSet) {
	f.StringVar(&w.kind, "type", "", "VM type")
	f.StringVar(&w.network, "network", "", "moniker of the network")
	f.StringSliceVar(&w.ips, "ip", nil, ipHelp)
	f.StringSliceVar(&w.groups, "group", nil, groupHelp)
	f.StringVar(&w.settings.Hostname, "hostname", "", "host name inside (default: the VM's name)")
	f.StringVar(&w.settings.User, "user", "", "user to make inside")
	f.StringSliceVar(&w.keyFiles, "ssh-key", nil, "file with a public key for the user")
	f.StringVar(&w.settings.TimeZone, "time-zone", "", "e.g. Europe/Berlin")
	f.StringVar(&w.settings.PasswordHash, "password-hash", "", "`HASH` of the user's password, as 'openssl passwd -6' prints it (default: no password)")
	f.StringSliceVar(&w.settings.Dns, "dns", nil, "name server, before the network's")
	f.StringArrayVar(&w.commands, "run-once", nil, "ID=COMMAND, run by a shell as root at most once")
	f.StringSliceVar(&w.mounts, "mount", nil, "DISK=GUESTPATH: format extra disk 1, 2, ... if it is blank, and mount it")
	f.StringSliceVar(&w.files, "file", nil, "GUESTPATH=LOCALFILE, written as root inside")
	f.StringVar(&w.userData, "user-data", "", "file that is handed to cloud-init inside")
	f.Int64SliceVar(&w.dataDisks, "data-disk", nil, "bytes of an extra disk")
	f.BoolVar(&w.wait, "wait", false, "watch until the guest has reported success")
}

// read loads the files that the flags name.
func (w *wish) read() error {
	for _, name := range w.keyFiles {
		b, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read ssh key: %w", err)
		}
		w.settings.SshKeys = append(w.settings.SshKeys, strings.TrimSpace(string(b)))
	}
	if w.userData != "" {
		b, err := os.ReadFile(w.userData)
		if err != nil {
			return fmt.Errorf("read user data: %w", err)
		}
		w.settings.UserData = b
	}
	for _, pair := range w.files {
		path, local, ok := strings.Cut(pair, "=")
		if !ok {
			return usageError{fmt.Errorf("--file is GUESTPATH=LOCALFILE, not %q", pair)}
		}
		b, err := os.ReadFile(local)
		if err != nil {
			return fmt.Errorf("read file for %s: %w", path, err)
		}
		w.settings.Files = append(w.settings.Files, &pb.File{Path: path, Mode: 0o644, Content: string(b)})
	}
	if err := w.split(); err != nil {
		return err
	}
	if w.kind == "" || w.network == "" {
		return usageError{errors.New("--type and --network are needed")}
	}
	return nil
}

// split takes the pairs apart that other flags hold.
func (w *wish) split() error {
	for _, pair := range w.commands {
		id, line, ok := strings.Cut(pair, "=")
		if !ok {
			return usageError{fmt.Errorf("--run-once is ID=COMMAND, not %q", pair)}
		}
		w.settings.RunOnce = append(w.settings.RunOnce, &pb.Command{Id: id, Command: line})
	}
	for _, pair := range w.mounts {
		disk, path, ok := strings.Cut(pair, "=")
		if !ok {
			return usageError{fmt.Errorf("--mount is DISK=GUESTPATH, not %q", pair)}
		}
		w.settings.Disks = append(w.settings.Disks, &pb.DataDisk{Id: disk, Path: path})
	}
	return nil
}

func vmCreate(c *caller) *cobra.Command {
	w := &wish{}
	var router bool
	cmd := &cobra.Command{Use: "create NAME", Short: "Make a VM from scratch", Args: exact(1, "a NAME"),
		Example: "  replug vm create db-1 --tenant acme --type small --network red --ip 10.0.0.30 --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := w.read(); err != nil {
				return err
			}
			return c.call(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
				client := pb.NewVMsClient(conn)
				v, err := client.CreateVM(ctx, &pb.CreateVMRequest{RequestId: c.id(), Tenant: c.tenant, Name: args[0], Type: w.kind,
					Network: w.network, Ips: w.ips, Groups: w.groups, Router: router, Settings: &w.settings, Host: w.host, DataDisks: w.dataDisks})
				if err != nil {
					return err
				}
				if w.wait {
					if v, err = c.waitVM(ctx, cmd, client, v); err != nil {
						return err
					}
				}
				return c.print(cmd, v, func() *table { return vms(v) })
			})
		}}
	w.flags(cmd.Flags())
	cmd.Flags().BoolVar(&router, "router", false, routerHelp)
	cmd.Flags().StringVar(&w.host, "host", "", "host to run on (default: the one with most room)")
	return cmd
}

// waitVM watches a new VM until it is ready, pooled or failed.
func (c *caller) waitVM(ctx context.Context, cmd *cobra.Command, client pb.VMsClient, v *pb.VM) (*pb.VM, error) {
	stream, err := client.WatchVM(ctx, &pb.GetVMRequest{Tenant: v.Tenant, Name: v.Id})
	if err != nil {
		return v, err
	}
	line := newTimeline(cmd, c.output == "table")
	for {
		if v, err = stream.Recv(); err != nil {
			return v, err
		}
		line.show(v.Timeline)
		switch v.Phase {
		case "ready", "pooled":
			return v, nil
		case "failed":
			return v, outcomeError{fmt.Errorf("VM %s failed: %s", v.Name, v.Error), exitError}
		}
	}
}

func vms(vs ...*pb.VM) *table {
	t := &table{head: []string{"VM", "ID", "TENANT", "TYPE", "HOST", "PHASE", "NETWORK", "ADDRESS", "MAC", "PA", "ERROR"}}
	for _, v := range vs {
		p := v.GetPort()
		t.add(v.Name, v.Id, v.Tenant, v.Type, v.Host, v.Phase, p.GetNetwork(), strings.Join(p.GetAddrs(), ","), p.GetMac(), p.GetPa(), v.Error)
	}
	return t
}

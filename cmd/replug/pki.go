package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"replug/directory/pki"
)

func pkiCommand() *cobra.Command {
	var cluster, dir string
	initialise := &cobra.Command{Use: "init", Short: "Make the cluster's certificate authority", Args: exact(0, "no argument"),
		Example: "  replug pki init --cluster paris --dir /etc/replug/pki",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := pki.Init(dir, cluster); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s/ca.crt goes to every program, %s/ca.key nowhere\n", dir, dir)
			return nil
		}}
	initialise.Flags().StringVar(&cluster, "cluster", "replug", "name of the cluster, part of every identity")
	cmd := noun("pki", "Certificates: who may talk to whom",
		`  replug pki init --cluster paris
  replug pki issue server s1 --ip 192.0.2.10
  replug pki issue host h1
  replug pki issue operator operator
  replug pki issue tenant acme`, initialise, pkiIssue(&dir))
	cmd.PersistentFlags().StringVar(&dir, "dir", "/etc/replug/pki", "directory of the authority")
	return cmd
}

func pkiIssue(dir *string) *cobra.Command {
	var ips []string
	var lifetime time.Duration
	cmd := &cobra.Command{Use: "issue server|host|operator|tenant NAME", Short: "Make or renew a certificate", Args: exact(2, "a kind and a NAME"),
		Example: "  replug pki issue host h1",
		RunE: func(cmd *cobra.Command, args []string) error {
			r := pki.Request{Kind: pki.Kind(args[0]), Name: args[1], Lifetime: lifetime}
			for _, s := range ips {
				ip, err := netip.ParseAddr(s)
				if err != nil {
					return usageError{fmt.Errorf("--ip: %w", err)}
				}
				r.IPs = append(r.IPs, ip)
			}
			files, err := pki.Issue(*dir, r)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n%s\n", files.Cert, files.Key)
			return nil
		}}
	cmd.Flags().StringSliceVar(&ips, "ip", nil, "address of a server, for clients that check it")
	cmd.Flags().DurationVar(&lifetime, "lifetime", 0, "how long it is good for (default a year)")
	return cmd
}

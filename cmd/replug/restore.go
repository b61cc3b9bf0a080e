package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"replug/directory/etcd"
)

func restoreCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: "restore FILE", Short: "Make a server's data directory from a backup", Args: exact(1, "a FILE"),
		Long: `Restore fills a new data directory from a backup; stop the server first and move the
old directory away. The era and the revision grow, so that every host reads
everything again and no former epoch wins.`,
		Example: "  replug restore replug-monday.backup --data-dir /var/lib/replug",
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("restore: %w", err)
			}
			defer f.Close()
			id, err := etcd.Restore(cmd.Context(), f, dir, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s holds cluster %s, era %d: start replug-server on it\n", dir, id.ID, id.Era)
			return nil
		}}
	cmd.Flags().StringVar(&dir, "data-dir", "/var/lib/replug", "the new data directory; it must not exist or be empty")
	return cmd
}

package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func benchCommand() *cobra.Command {
	return &cobra.Command{Use: "bench", Short: "Measure the figures beside their floors", Args: exact(0, "no argument"),
		RunE: func(*cobra.Command, []string) error { return errors.New("not there yet") }}
}

"""The matchmaker: finds seats for players, starts and stops game servers, and cleans up."""
